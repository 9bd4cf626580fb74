package network

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/network/config"
)

// Hidden returns the ports of the host on which a program of it listens, and that a forward takes
// from it.
func (m *Manager) Hidden(f config.Forward) (ports []uint16, err error) {
	if m.Elsewhere != nil {
		return nil, nil // the user's sockets get these ports, or the forward fails
	}
	err = m.NS.Do(func() error {
		for _, suffix := range []string{"", "6"} {
			table, err := readBounded("/proc/thread-self/net/"+f.Protocol+suffix, maxSockets)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			for _, a := range listening(string(table), f.Protocol) {
				if f.First <= a.Port() && a.Port() <= f.Last && takes(f, a.Addr()) {
					ports = append(ports, a.Port())
				}
			}
		}
		return nil
	})
	slices.Sort(ports)
	return slices.Compact(ports), err
}

// maxSockets bounds the table of sockets that is read, in bytes.
const maxSockets = 16 << 20

// takes reports whether connections to an address that a program listens on go to the forward.
func takes(f config.Forward, a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsLoopback() && (!f.Listen.IsValid() || a.IsUnspecified() || a == f.Listen)
}

// listening returns the addresses in a table of proc_net_tcp(5) on which programs listen.
func listening(table, protocol string) (found []netip.AddrPort) {
	state := map[string]string{"tcp": "0A", "udp": "07"}[protocol] // TCP_LISTEN, TCP_CLOSE
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != state {
			continue
		}
		addr, port, _ := strings.Cut(fields[1], ":")
		b, err := hex.DecodeString(addr)
		n, portErr := strconv.ParseUint(port, 16, 16)
		if errors.Join(err, portErr) != nil || len(b)%4 != 0 {
			continue
		}
		for i := 0; i < len(b); i += 4 { // each word is in the machine's byte order
			binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
		}
		if a, ok := netip.AddrFromSlice(b); ok {
			found = append(found, netip.AddrPortFrom(a, uint16(n)))
		}
	}
	return found
}
