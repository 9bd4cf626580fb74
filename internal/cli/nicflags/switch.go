package nicflags

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"vmnet/tapmgr/nic"
)

// AddSwitch adds the flags of a NIC that is a port of a userspace switch.
func (n *NIC) AddSwitch(fs *pflag.FlagSet) {
	fs.StringVar(&n.sw.Name, "switch", "",
		"the userspace `SWITCH` (vmnet switch run) of which the NIC is a port, by its name or, with a slash, the path of its control socket, instead of --bridge")
	fs.BoolVar(&n.sw.LockMAC, "lock-mac",
		false, "on a switch: drop frames from the guest whose source is not the NIC's own address")
	limit(fs, &n.sw.Storm, "storm", strconv.Itoa(nic.DefaultStorm),
		"on a switch: how many broadcasts, multicast frames and frames with unknown destinations of the guest are flooded, each in a second")
	limit(fs, &n.sw.MaxAddresses, "max-addresses", strconv.Itoa(nic.DefaultMaxAddresses),
		"on a switch: how many addresses are learned behind the port; further ones are reached by flooding")
}

// limit adds a flag that takes a number of at least 1, or off.
func limit(fs *pflag.FlagSet, p *int, name, def, usage string) {
	fs.Var(Value("N|off", def, func(s string) (err error) {
		if s == "off" {
			*p = nic.NoLimit
			return nil
		}
		if *p, err = Positive(s); err != nil {
			return fmt.Errorf("%w, or off", err)
		}
		return nil
	}), name, usage)
}

// LibvirtWays and SwitchWays are the words of --via: how a libvirt guest gets a NIC, and what
// connects QEMU to a switch.
var (
	LibvirtWays = []string{string(nic.ViaLibvirt), string(nic.ViaMonitor)}
	SwitchWays  = texts(nic.Bys)
)

func texts[T ~string](words []T) (all []string) {
	for _, w := range words {
		all = append(all, string(w))
	}
	return all
}

// AddVia adds --via, which takes a word of each kind; without libvirt, only a word for a switch.
func (n *NIC) AddVia(fs *pflag.FlagSet, libvirt bool) {
	kind, usage := strings.Join(SwitchWays, "|"),
		"on a switch: a socket needs no privilege, a tap has more throughput; vhost-user has the most, and the "+
			"switch gets the guest's memory; auto: a tap if that is allowed, else a socket"
	if libvirt {
		kind = strings.Join(LibvirtWays, "|") + "|" + kind
		usage = "how a libvirt guest gets it: with libvirt, libvirt plugs it and knows it; with monitor, " +
			"QEMU gets fds through libvirt, which then does not know the NIC (default libvirt). " +
			strings.ToUpper(usage[:1]) + usage[1:] + " (default auto). One of each kind: --via monitor,socket"
	}
	fs.Var(Value(kind, "", func(s string) error {
		for word := range strings.SplitSeq(s, ",") {
			if err := n.via(word, libvirt); err != nil {
				return err
			}
		}
		return nil
	}), "via", usage)
}

func (n *NIC) via(word string, libvirt bool) error {
	words := SwitchWays
	if libvirt {
		words = slices.Concat(LibvirtWays, SwitchWays)
	}
	switch {
	case !slices.Contains(words, word):
		return fmt.Errorf("want %s", strings.Join(words, " or "))
	case slices.Contains(SwitchWays, word) && n.sw.By == "":
		n.sw.By = nic.By(word)
	case slices.Contains(LibvirtWays, word) && n.spec.Via == "":
		n.spec.Via = nic.Via(word)
	default:
		return fmt.Errorf("%s and another word of the same kind (want %s; %s)", word, strings.Join(LibvirtWays, " or "),
			strings.Join(SwitchWays, " or "))
	}
	return nil
}

// onSwitch returns the switch that the flags name; nil for none.
func (n *NIC) onSwitch() (*nic.Switch, error) {
	sw := n.sw
	switch {
	case sw.Name != "":
		return &sw, nil
	case sw == (nic.Switch{By: sw.By}) && sw.By != "" && n.spec.Network != "":
		return &sw, nil // userdirs.Join adds the name
	case sw.By != "":
		return nil, fmt.Errorf("--via %s goes with --switch, or with --network for a network of yours", sw.By)
	case sw != (nic.Switch{}):
		return nil, fmt.Errorf("--lock-mac, --storm and --max-addresses go with --switch")
	}
	return nil, nil
}
