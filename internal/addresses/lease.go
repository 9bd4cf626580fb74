package addresses

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"vmnet/internal/kernel/procfd"
	"vmnet/internal/network/dhcp"
	"vmnet/tapmgr/nic"
)

// leases adds what the servers of the networks have given to NICs on those networks' bridges.
func (s *Sources) leases(h *host, nics []nic.NIC, books []book, byMAC map[string][]int) (notices []string) {
	now := time.Now()
	networks := map[string]bool{}
	for i := range nics {
		for _, name := range []string{nics[i].Source, nics[i].Network} {
			// A record's source may be anything; the name of a link is no path.
			if name == "" || networks[name] || nics[i].Type != nic.TypeTap && nics[i].Network == "" ||
				filepath.Base(name) != name || name == ".." {
				continue
			}
			networks[name] = true
			all, err := s.leasesOf(name, h.byName[name] != nil)
			if err != nil {
				notices = append(notices, fmt.Sprintf("the leases of network %s are not known: %v", name, err))
			}
			for _, l := range all {
				if !l.Expires.IsZero() && l.Expires.Before(now) {
					continue
				}
				for _, j := range byMAC[l.MAC] {
					if nics[j].Source == name || nics[j].Network == name {
						books[j].add(Lease, l.IP)
					}
				}
			}
		}
	}
	return notices
}

// leasesOf reads the leases of a network. libvirt's are called after their bridge, which must be
// here.
func (s *Sources) leasesOf(name string, here bool) (all []dhcp.Lease, err error) {
	for _, state := range s.States {
		found, readErr := dhcp.ReadLeases(state, name)
		if errors.Is(readErr, fs.ErrPermission) {
			readErr = nil // another user's
		}
		all, err = append(all, found...), errors.Join(err, readErr)
	}
	if s.Libvirt != "" && here {
		found, readErr := libvirtLeases(filepath.Join(s.Libvirt, name+".status"))
		all, err = append(all, found...), errors.Join(err, readErr)
	}
	return all, err
}

// libvirtLeases reads what libvirt_leaseshelper writes (virLeaseReadCustomLeaseFile in libvirt's
// src/util/virlease.c): a JSON array, or nothing.
func libvirtLeases(path string) (leases []dhcp.Lease, err error) {
	f, err := procfd.OpenRegular(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, dhcp.MaxLeaseBytes))
	if err != nil || len(text) == 0 {
		return nil, err
	}
	var all []struct {
		IP      string `json:"ip-address"`
		MAC     string `json:"mac-address"`
		Expires int64  `json:"expiry-time"` // seconds since 1970; 0 for never
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, one := range all {
		mac, macErr := net.ParseMAC(one.MAC)
		ip, ipErr := netip.ParseAddr(one.IP)
		if macErr != nil || ipErr != nil {
			continue
		}
		l := dhcp.Lease{IP: ip, MAC: mac.String()}
		if one.Expires > 0 {
			l.Expires = time.Unix(one.Expires, 0)
		}
		leases = append(leases, l)
	}
	return leases, nil
}
