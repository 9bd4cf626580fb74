package userdirs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/tapmgr/nic"
)

// checkIP returns an error if a NIC cannot have its addresses on a network. With port security,
// IPv6 addresses are those that the guest may send from.
func checkIP(n *config.Network, s *nic.Spec, ports []control.Port, leases []dhcp.Lease) error {
	id := cmp.Or(s.NIC, "net0")
	mac := s.MAC
	if mac == nil {
		mac = nic.DefaultMAC(s.VM, id)
	}
	var own netip.Addr
	for _, a := range s.IP {
		switch {
		case a.Is6() && s.Security.IsZero():
			return fmt.Errorf("ip %s: the server gives IPv4 addresses only: guests make those of IPv6 themselves", a)
		case a.Is6():
			continue
		case own.IsValid():
			return fmt.Errorf("%s and %s: a guest has one IPv4 address", own, a)
		case !n.DHCP:
			return errors.New("it has no server that gives guests addresses (dhcp: true in its file)")
		}
		if err := n.CheckIP(a); err != nil {
			return err
		}
		own = a
	}
	if who := owner(n, own, mac, s.VM, id, ports, leases); own.IsValid() && who != "" {
		return fmt.Errorf("%w: %s is %s (use another address)", nic.ErrInUse, own, who)
	}
	return nil
}

// owner returns what has an address instead of a NIC, or the NIC's other one; empty for nothing.
func owner(n *config.Network, a netip.Addr, mac net.HardwareAddr, vm, id string, ports []control.Port,
	leases []dhcp.Lease,
) string {
	for _, h := range n.Fixed() {
		mine := bytes.Equal(h.MAC, mac)
		switch {
		case h.IP == a && !mine:
			return fmt.Sprintf("host %s's, which has MAC %s", h.Name, h.MAC)
		case mine && h.IP != a:
			return fmt.Sprintf("not %s/%s's, whose MAC is that of host %s with %s", vm, id, h.Name, h.IP)
		}
	}
	for _, p := range ports {
		r, ok := nic.ParseRecord(p.Label)
		if ok && slices.Contains(r.IP, a) && (r.VM != vm || r.NIC != id) {
			return fmt.Sprintf("%s/%s's, on %s", r.VM, r.NIC, p.Name)
		}
	}
	for _, l := range leases {
		ended := !l.Expires.IsZero() && l.Expires.Before(time.Now())
		if l.IP == a && l.MAC != mac.String() && !ended {
			return fmt.Sprintf("leased to MAC %s until %s", l.MAC, l.Expires.Format(time.RFC3339))
		}
	}
	return ""
}
