package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/bridge"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/tapmgr"
)

// wantedPort is a port of a switch as the command line describes it.
type wantedPort struct {
	control.Port
	queues int // of a tap
}

// portHelp is how ports are written, for run and add-port.
const portHelp = `A port is written DEVICE[,OPTION...], with the options

    name=NAME              what the switch calls it (default the device's name)
    queues=N               of a tap
    mtu=BYTES              of frames that leave by it (default the device's, as it is at any time)
    vlan=N                 it is in VLAN N alone, untagged
    trunk=LIST             the VLANs whose frames come and go tagged: 2-5,7; or all
    native=N               with trunk: the VLAN of frames without a tag
    forward=LIST           forward frames of protocols between neighbours that come in by it:
                           lldp, lacp, eapol, ptp, elmi, or all
    isolated               no frames to and from other isolated ports
    hairpin                frames may go back to the port that they came from
    no-learning            learn no addresses behind it
    no-flood               no frames to unknown addresses leave by it
    no-loop-guard          never stop it for a loop
    mac=MAC                take frames of this source only (repeatable)
    max-addresses=N        learn at most N addresses behind it
    storm=N                have at most N broadcasts, multicast frames and frames to unknown
                           addresses of it flooded, each in a second; storm-broadcast=N,
                           storm-multicast=N and storm-unknown=N set one of them
    storm-refused=N        of more than N frames in a second that go nowhere, as beyond these
                           limits or of another source, read it less often; for guests

As soon as a port has a VLAN, the switch keeps VLANs apart, and ports without vlan and trunk are in
VLAN 1, untagged; until then tags are payload, and all ports are in one network.`

// devicePorts are the flags --tap and --packet, in the order in which they were given.
func devicePorts(cmd *cobra.Command, a *app, ports *[]wantedPort) {
	for _, kind := range []struct{ name, usage string }{
		{control.Tap, "a port that is the queues of a tap: made if it is missing, opened if it is persistent (repeatable)"},
		{control.Packet, "a port on the kernel's side of a device that somebody else holds, such as a network card or a QEMU's tap (repeatable)"},
	} {
		cmd.Flags().Var(nicflags.Value("DEVICE[,OPTION...]", "", func(s string) error {
			p, err := parsePort(kind.name, s)
			if err == nil {
				err = p.isNew(*ports)
			}
			*ports = append(*ports, p)
			return err
		}), kind.name, kind.usage)
	}
	complete(cmd, control.Tap, cobra.NoFileCompletions)
	complete(cmd, control.Packet, a.interfaceNames)
}

// isNew is an error where one of the others has its name or device.
func (w *wantedPort) isNew(others []wantedPort) error {
	for _, o := range others {
		switch {
		case o.Name == w.Name:
			return fmt.Errorf("port %s is given twice", w.Name)
		case o.Device == w.Device:
			return fmt.Errorf("device %s is given twice", w.Device)
		}
	}
	return nil
}

// parsePort reads DEVICE[,OPTION...]. A list may go on behind a comma.
func parsePort(kind, text string) (wantedPort, error) {
	words := strings.Split(text, ",")
	w := wantedPort{Port: control.Port{Kind: kind, Name: words[0], Device: words[0]}, queues: 1}
	options := w.options()
	seen := map[string]bool{}
	words = words[1:]
	for len(words) > 0 {
		option := words[0]
		words = words[1:]
		for len(words) > 0 && continues(option, words[0]) {
			option += "," + words[0]
			words = words[1:]
		}
		key, value, has := strings.Cut(option, "=")
		f := options.Lookup(key)
		switch {
		case f == nil:
			return w, fmt.Errorf("a port has no option %q", key)
		case !has && f.NoOptDefVal == "":
			return w, fmt.Errorf("option %s: want %s=%s", key, key, strings.ToUpper(f.Value.Type()))
		case seen[key] && key != "mac":
			return w, fmt.Errorf("option %s is given twice", key)
		case !has:
			value = f.NoOptDefVal
		}
		seen[key] = true
		if err := f.Value.Set(value); err != nil {
			return w, fmt.Errorf("option %s: %w", option, err)
		}
	}
	return w, w.Validate()
}

// continues reports whether a word belongs to the list that an option has begun.
func continues(option, word string) bool {
	switch {
	case strings.HasPrefix(option, "trunk="):
		return word != "" && word[0] >= '0' && word[0] <= '9'
	case strings.HasPrefix(option, "forward="):
		_, err := bridge.ParseProtocols(word)
		return err == nil
	}
	return false
}

func (w *wantedPort) options() *pflag.FlagSet {
	f := pflag.NewFlagSet("port", pflag.ContinueOnError)
	nicflags.AddPort(f, &w.Config.PortConfig)
	storm := &w.Config.Storm
	limit(f, "max-addresses", &w.Config.MaxAddresses)
	limit(f, "storm", &storm.Broadcast, &storm.Multicast, &storm.Unknown)
	limit(f, "storm-broadcast", &storm.Broadcast)
	limit(f, "storm-multicast", &storm.Multicast)
	limit(f, "storm-unknown", &storm.Unknown)
	limit(f, "storm-refused", &storm.Refused)
	f.BoolVar(&w.Config.NoLoopGuard, "no-loop-guard", false, "")
	f.StringVar(&w.Name, "name", w.Name, "")
	f.Var(nicflags.Value("BYTES", "", func(s string) (err error) {
		if w.Config.MTU, err = strconv.Atoi(s); err != nil || w.Config.MTU == 0 {
			return errors.New("want a number of bytes")
		}
		return nil
	}), "mtu", "")
	f.Var(nicflags.Value("MAC", "", func(s string) error {
		mac, err := net.ParseMAC(s)
		w.Config.MACs = append(w.Config.MACs, mac)
		return err
	}), "mac", "")
	if w.Kind == control.Tap {
		f.Var(nicflags.Value("N", "", func(s string) (err error) {
			if w.queues, err = strconv.Atoi(s); err != nil || w.queues < 1 || w.queues > control.MaxQueues {
				return fmt.Errorf("want 1 to %d", control.MaxQueues)
			}
			return nil
		}), "queues", "")
	}
	return f
}

// limit is an option that sets numbers to one of at least 1.
func limit(f *pflag.FlagSet, name string, to ...*int) {
	f.Var(nicflags.Value("N", "", func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return errors.New("want a number of at least 1")
		}
		for _, p := range to {
			*p = n
		}
		return nil
	}), name, "")
}

// An openPort is a wantedPort with its files, for whoever runs the switch.
type openPort struct {
	control.Port
	files []*os.File
	close func() error
	how   string // it came to be
}

// openPorts opens all, or none. It takes the rights that their devices need.
func openPorts(ctx context.Context, ns *netns.NS, wanted []wantedPort) (opened []openPort, err error) {
	c, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for i := range wanted {
		w := &wanted[i]
		var p openPort
		if w.Kind == control.Tap {
			p, err = w.openTap(ns, c)
		} else {
			p, err = w.openPacket(ctx, ns, c)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("port %s: %w", w.Name, err), closePorts(opened))
		}
		opened = append(opened, p)
	}
	return opened, nil
}

func closePorts(opened []openPort) error {
	var errs []error
	for _, p := range opened {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

func (w *wantedPort) openTap(ns *netns.NS, c *rtnl.Conn) (openPort, error) {
	link, err := c.Link(w.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return w.makeTap(ns, c)
	}
	if err != nil {
		return openPort{}, err
	}
	switch t := link.Tun; {
	case t == nil || !t.Tap:
		return openPort{}, fmt.Errorf("%s is no tap (--packet takes the frames of any device)", w.Device)
	case !t.Persist || t.Attached:
		return openPort{}, fmt.Errorf("another process has the tap %s open (--packet takes its frames on the kernel's side)", w.Device)
	case w.queues > 1 && !t.MultiQueue:
		return openPort{}, fmt.Errorf("the tap %s was made with one queue: ask for no more (or make it anew: ip tuntap add %s mode tap multi_queue)", w.Device, w.Device)
	}
	w.Segments = vswitch.SegmentsOf(c, link, false)
	tap, err := tun.Open(ns, w.Device, link.Tun.MultiQueue, w.queues)
	if err != nil {
		return openPort{}, err
	}
	how := "opened"
	if !link.Up {
		how = "opened, the link is down"
	}
	return w.followed(ns, tap, how)
}

// makeTap makes a tap that goes with its last queue, and brings it up.
func (w *wantedPort) makeTap(ns *netns.NS, c *rtnl.Conn) (openPort, error) {
	tap, err := tun.Create(ns, w.Device, w.queues > 1)
	if err != nil {
		return openPort{}, err
	}
	for range w.queues - 1 {
		if err == nil {
			err = tap.AddQueue()
		}
	}
	var link *rtnl.Link
	if err == nil {
		link, err = c.Link(w.Device)
	}
	if err == nil {
		attrs := []rtnl.Attr{rtnl.Up(true)}
		if w.Config.MTU != 0 {
			attrs = append(attrs, rtnl.MTU(w.Config.MTU))
		}
		err = c.Set(link.Index, attrs...)
	}
	if err != nil {
		return openPort{}, errors.Join(err, tap.Close())
	}
	return w.followed(ns, tap, "made")
}

// followed is a port by a tap, whose device the switch follows.
func (w *wantedPort) followed(ns *netns.NS, tap *tun.Tap, how string) (openPort, error) {
	link, err := vswitch.LinkFile(ns)
	if err != nil {
		return openPort{}, errors.Join(err, tap.Close())
	}
	p := w.Port
	p.Link = true
	closeBoth := func() error { return errors.Join(tap.Close(), link.Close()) }
	return openPort{Port: p, files: append(slices.Clone(tap.Queues()), link), close: closeBoth, how: how}, nil
}

func (w *wantedPort) openPacket(ctx context.Context, ns *netns.NS, c *rtnl.Conn) (openPort, error) {
	link, err := c.Link(w.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return openPort{}, fmt.Errorf("device %s: %w (ip link shows those that are here; --netns names another network namespace)", w.Device, err)
	}
	if err != nil {
		return openPort{}, err
	}
	notes, err := vswitch.CheckInUse(ns, c, link)
	if err == nil {
		err = noGuestsOn(ctx, ns, link.Name)
	}
	if err != nil {
		return openPort{}, err
	}
	w.Segments = vswitch.SegmentsOf(c, link, true)
	files, err := vswitch.PacketFiles(ns, link.Name)
	if err != nil {
		return openPort{}, err
	}
	how := "opened"
	if !link.Up {
		how += ", the link is down"
	}
	how = strings.Join(append([]string{how}, notes...), ", ")
	closeAll := func() error {
		var errs []error
		for _, f := range files {
			errs = append(errs, f.Close())
		}
		return errors.Join(errs...)
	}
	return openPort{Port: w.Port, files: files, close: closeAll, how: how}, nil
}

// noGuestsOn is an error where guests have macvtaps or ipvtaps on a device: these may be in network
// namespaces that only their QEMUs have open.
func noGuestsOn(ctx context.Context, ns *netns.NS, device string) error {
	return tapmgr.In(ns.String(), func(m *tapmgr.Manager) error {
		info, err := m.ShowLower(ctx, device)
		if err != nil || len(info.NICs) == 0 {
			return err
		}
		var names []string
		for _, n := range info.NICs {
			names = append(names, fmt.Sprintf("%s of %s", n.ID, n.VM))
		}
		return fmt.Errorf("NICs of guests are on %s, and would get nothing any more: %s (vmnet detach them, or take another device)", device, namesText(names))
	})
}

// portSettings is a port's settings in short, as bridge show has them.
func portSettings(cfg vswitch.PortConfig) string {
	words := strings.FieldsFunc(cfg.PortConfig.String(), func(r rune) bool { return r == ';' })
	for _, mac := range cfg.MACs {
		words = append(words, "mac:"+mac.String())
	}
	if cfg.NoLoopGuard {
		words = append(words, "no-loop-guard")
	}
	storm := cfg.Storm
	all := 0 // of what storm= sets
	if storm.Broadcast == storm.Multicast && storm.Multicast == storm.Unknown {
		all, storm.Broadcast, storm.Multicast, storm.Unknown = storm.Broadcast, 0, 0, 0
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"max-addresses", cfg.MaxAddresses},
		{"storm", all},
		{"storm-broadcast", storm.Broadcast},
		{"storm-multicast", storm.Multicast},
		{"storm-unknown", storm.Unknown},
		{"storm-refused", storm.Refused},
	} {
		if n.value != 0 {
			words = append(words, n.name+":"+strconv.Itoa(n.value))
		}
	}
	return strings.Join(words, ";")
}
