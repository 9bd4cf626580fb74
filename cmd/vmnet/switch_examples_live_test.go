package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

// An example has the arguments of a documented `switch run`.
type example struct {
	where string
	args  []string // after the switch's name
}

// runExamples returns the examples of the help, the manual and docs/examples.
func runExamples(t *testing.T) (all []example) {
	t.Helper()
	var a app
	texts := map[string]string{
		"vmnet switch --help":     a.switchCommand().Example,
		"vmnet switch run --help": a.switchRunCommand().Example,
	}
	for _, path := range []string{"../../docs/man/vmnet-switch.8.md", "../../docs/examples/switch.env"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(b)
	}
	lines := regexp.MustCompile(`(?m)^ +vmnet switch run \S+(.*?)&?$|^ *OPTIONS="(.*)"$`)
	for where, text := range texts {
		before := len(all)
		for _, m := range lines.FindAllStringSubmatch(text, -1) {
			all = append(all, example{where, strings.Fields(m[1] + m[2])})
		}
		if len(all) == before {
			t.Errorf("%s has no example", where)
		}
	}
	return all
}

// TestLiveSwitchExamples runs the documented examples: each port can reach another one.
func TestLiveSwitchExamples(t *testing.T) {
	for _, e := range runExamples(t) {
		t.Run(e.where+" "+strings.Join(e.args, " "), func(t *testing.T) {
			ns := nstest.New(t)
			dir := t.TempDir()
			for i, arg := range e.args {
				e.args[i] = strings.Replace(arg, "/run/me/", dir+"/", 1)
				switch arg {
				case "--packet":
					device, _, _ := strings.Cut(e.args[i+1], ",")
					card(t, ns, device)
				case "--user":
					e.args[i+1] = "65534:65534" // an administrator creates the user that the text names
				}
			}
			r := runSwitch(t, ns, nil, e.args...)
			ports := slices.Collect(func(yield func(control.Port) bool) {
				for _, p := range r.ports() {
					if !yield(p) {
						return
					}
				}
			})
			if names := alone(ports, false); len(names) > 0 {
				t.Errorf("%v can reach no other port", names)
			}
			r.end()
		})
	}
}

// card creates a veth device whose peer, lan0, is in another netns.
func card(t *testing.T, ns *netns.NS, name string) (outside *netns.NS) {
	t.Helper()
	outside = nstest.New(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = name, unix.IFF_UP
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "lan0", PeerNamespace: netlink.NsFd(int(outside.Handle()))}
	nl := nstest.Handle(t, ns)
	if err := nl.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	link, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	return outside
}

// TestLiveShippedOptions: the guests of docs/examples/switch.env reach the network outside,
// untagged and in a VLAN.
func TestLiveShippedOptions(t *testing.T) {
	var shipped []string
	for _, e := range runExamples(t) {
		if strings.HasSuffix(e.where, ".env") {
			shipped = e.args
		}
	}
	ns := nstest.New(t)
	outside := card(t, ns, "eth1")
	r := runSwitch(t, ns, nil, shipped...)
	plain := seat(t, ns, "tap0", "10.7.0.1")
	address(t, outside, "lan0", "10.7.0.2")
	awaitAnswer(t, plain, "10.7.0.2")
	if err := stream(t, plain, outside, "10.7.0.2"); err != nil {
		t.Error(err)
	}

	// This kernel may have no VLAN devices: what a guest's frame looks like outside tells its VLAN.
	tagged := seat(t, ns, "tap1", "10.7.5.1")
	if vlan := vlanOutside(t, tagged, outside); vlan != r.ports()["tap1"].Config.VLAN || vlan == 0 {
		t.Errorf("tap1's frames are in VLAN %d outside", vlan)
	}
	r.end()
}

// vlanOutside lets a guest send an ARP request for an unused address, and returns the VLAN in which
// the request leaves the switch.
func vlanOutside(t *testing.T, guest, outside *netns.NS) (vlan int) {
	t.Helper()
	fd := -1
	if err := outside.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK,
			int(htons(unix.ETH_P_ALL)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 2048), make([]byte, 256)
	nstest.Eventually(t, patience, "the question gets out", func() bool {
		_ = answers(t, guest, "10.7.5.9")
		for {
			n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, 0)
			if err != nil {
				return false
			}
			if n < 42 || string(b[38:42]) != "\x0a\x07\x05\x09" {
				continue
			}
			controls, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(controls) == 0 {
				t.Fatal("no auxiliary data", err)
			}
			aux := controls[0].Data // struct tpacket_auxdata: tp_vlan_tci is at offset 16
			vlan = int(aux[16]) | int(aux[17])<<8
			return true
		}
	})
	return vlan
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
