package nicflags

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"vmnet/tapmgr/nic"
)

// NIC has the values of the flags of one NIC.
type NIC struct {
	spec  nic.Spec
	vhost string
	lower lower
	ip    []netip.Prefix
	sw    nic.Switch
}

// AddNIC adds the flags of a NIC to fs.
func AddNIC(fs *pflag.FlagSet) *NIC {
	n := &NIC{vhost: string(nic.VhostAuto)}
	fs.StringVar(&n.spec.Bridge, "bridge", "", "the `BRIDGE` that the NIC is put on")
	fs.StringVar(&n.spec.Network, "network", "",
		"the `NETWORK` (vmnet network create) on whose bridge the NIC is put, instead of --bridge")
	fs.StringVar(&n.spec.Routed, "routed", "",
		"the `UPLINK` on which the host answers for the guest's addresses (--ip), without a bridge; "+
			"for Wi-Fi and where only one MAC is allowed")
	n.lower.add(fs)
	addIP(fs, &n.ip)
	AddPort(fs, &n.spec.Port)
	AddSecurity(fs, &n.spec.Security)
	AddInbound(fs, &n.spec.AllowIn)
	AddRates(fs, &n.spec.Rates)
	AddShape(fs, &n.spec.Rates)
	fs.StringVar(&n.spec.IfaceID, "iface-id", "",
		"the `ID` by which OVN knows the port (default one derived from machine, guest and NIC, always the same)")
	fs.StringVar(&n.spec.OVSDB, "ovsdb", "",
		"`SOCKET` of Open vSwitch's database, if the bridge is not in this machine's usual one")
	fs.StringVar(&n.spec.NIC, "nic", "net0", "`ID` of the NIC within the guest: 1 to 12 of a-z, 0-9 and _")
	AddMAC(fs, &n.spec.MAC,
		"the guest's address (default one derived from machine, guest and NIC, always the same; for an ipvtap or mode passthru that of the parent device)")
	MTU(fs, &n.spec.MTU,
		"MTU announced to the guest, 68 to 65535; maximum and default: that of the bridge or parent device; default on a switch: 1500")
	addQueues(fs, &n.spec.Queues)
	Choice(fs, &n.vhost, "vhost", "", "whether the kernel's vhost-net moves the frames; auto: if it is available",
		Vhosts...)
	fs.StringVar(&n.spec.Model, "model", "", "QEMU's `DEVICE` (default virtio-net-pci, or what the machine has for it)")
	addOptions(fs, &n.spec.DeviceOptions)
	return n
}

// Vhosts and Queues are values of the flags --vhost and --queues, for completion.
var (
	Vhosts = []string{string(nic.VhostAuto), string(nic.VhostOn), string(nic.VhostOff)}
	Queues = []string{"auto", "1", "2", "4", "8"}
)

// Spec returns what the flags ask for; the caller fills in the guest. An error means wrong usage.
func (n *NIC) Spec() (s nic.Spec, err error) {
	s = n.spec
	s.Vhost = nic.Vhost(n.vhost)
	if s.Switch, err = n.onSwitch(); err != nil {
		return s, err
	}
	if err := n.onePlace(); err != nil {
		return s, err
	}
	if n.lower.ipvtap != "" {
		s.Lower, err = n.lower.spec(n.ip)
		return s, err
	}
	if s.IP, s.Security.Nets, err = n.ownIP(); err != nil {
		return s, err
	}
	if n.sw.Name != "" && len(s.IP) > 0 && s.Security.IsZero() {
		return s, errors.New("--ip with --switch needs --port-security (on a network of yours: --network)")
	}
	s.Lower, err = n.lower.spec(nil)
	return s, err
}

// onePlace returns an error if more than one place was given.
func (n *NIC) onePlace() error {
	var given []string
	for _, p := range []struct{ flag, value string }{
		{"--bridge", n.spec.Bridge},
		{"--network", n.spec.Network},
		{"--routed", n.spec.Routed},
		{"--switch", n.sw.Name},
		{"--macvtap", n.lower.macvtap},
		{"--ipvtap", n.lower.ipvtap},
	} {
		if p.value != "" {
			given = append(given, p.flag)
		}
	}
	if len(given) > 1 {
		return fmt.Errorf("%s: a NIC can have only one of them", strings.Join(given, " and "))
	}
	return nil
}

// AddMAC adds --mac. It checks only the form of the address.
func AddMAC(fs *pflag.FlagSet, p *net.HardwareAddr, usage string) {
	fs.Var(Value("MAC", "", func(s string) (err error) {
		*p, err = net.ParseMAC(s)
		return err
	}), "mac", usage)
}

func addQueues(fs *pflag.FlagSet, p *int) {
	fs.Var(Value("N|auto", "1", func(s string) error {
		if s == "auto" {
			*p = nic.QueuesAuto
			return nil
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > nic.MaxQueues {
			return fmt.Errorf("want 1 to %d, or auto", nic.MaxQueues)
		}
		*p = n
		return nil
	}), "queues", fmt.Sprintf("queue pairs, 1 to %d; auto is the number of vCPUs, at most %d",
		nic.MaxQueues, nic.MaxAutoQueues))
}

func addOptions(fs *pflag.FlagSet, p *map[string]string) {
	*p = map[string]string{}
	fs.Var(Values("KEY=VALUE", func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return fmt.Errorf("want KEY=VALUE")
		}
		if _, twice := (*p)[k]; twice {
			return fmt.Errorf("%s is given twice", k)
		}
		(*p)[k] = v
		return nil
	}), "device-opt", "a further property of QEMU's device, such as rx_queue_size=1024 (repeatable)")
}
