package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"vmnet/internal/kernel/procfd"
)

// Lease is an address that a guest has.
type Lease struct {
	IP      netip.Addr `json:"ip"`
	MAC     string     `json:"mac"`
	Name    string     `json:"name,omitempty"`  // which the guest has chosen, or its own
	Expires time.Time  `json:"expires"`         // the zero time for never
	Guest   string     `json:"guest,omitempty"` // VM/NIC, if the guest's NIC is known
}

// MaxLeaseBytes bounds a lease file.
const MaxLeaseBytes = 4 << 20

// maxField is the most of a field that is accepted, in bytes: guests choose their names and ids.
const maxField = 1024

// ReadLeases reads the leases of a network in the directory state; none if there is no file.
func ReadLeases(state, network string) ([]Lease, error) {
	f, err := procfd.OpenRegular(FilesOf(state, network).Leases)
	if errors.Is(err, fs.ErrNotExist) {
		return []Lease{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxLeaseBytes+1))
	if err != nil {
		return nil, err
	}
	return ParseLeases(text)
}

// ParseLeases parses the lease file that dnsmasq writes: lines of expiry in seconds since 1970,
// MAC, IP address, name or *, and client id or * (lease_update_file in dnsmasq's src/lease.c).
// Lines about DHCPv6 are left out. An error names the line.
func ParseLeases(data []byte) ([]Lease, error) {
	if len(data) > MaxLeaseBytes {
		return nil, fmt.Errorf("leases: the file has more than %d bytes", MaxLeaseBytes)
	}
	leases := []Lease{}
	number := 0
	for line := range bytes.Lines(data) {
		number++
		fields := strings.Fields(string(line))
		if len(fields) == 0 {
			continue
		}
		if fields[0] == "duid" {
			break // DHCPv6 follows
		}
		l, err := parseLease(fields)
		if err != nil {
			return nil, fmt.Errorf("leases: line %d: %w", number, err)
		}
		leases = append(leases, l)
	}
	return leases, nil
}

func parseLease(fields []string) (l Lease, err error) {
	if len(fields) < 4 {
		return l, fmt.Errorf("%d fields, want 5", len(fields))
	}
	for _, f := range fields {
		if len(f) > maxField {
			return l, fmt.Errorf("a field of %d bytes", len(f))
		}
	}
	expiry, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil || expiry < 0 {
		return l, fmt.Errorf("expiry %q", fields[0])
	}
	if expiry > 0 {
		l.Expires = time.Unix(expiry, 0).UTC()
	}
	mac, err := net.ParseMAC(fields[1])
	if err != nil {
		return l, fmt.Errorf("MAC %q", fields[1])
	}
	l.MAC = mac.String()
	if l.IP, err = netip.ParseAddr(fields[2]); err != nil {
		return l, fmt.Errorf("address %q", fields[2])
	}
	if fields[3] != "*" {
		l.Name = strings.ToValidUTF8(fields[3], "?")
	}
	return l, nil
}
