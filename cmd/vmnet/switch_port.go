package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/bridge/brport"
	"vmnet/bridge/portrate"
	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/cli/nicflags"
)

// wantedPort is a switch port as the command line describes it.
type wantedPort struct {
	control.Port
	queues  int  // of a tap
	connect bool // to a socket, rather than listen at it
	listen  bool
}

// portHelp describes the syntax of ports, for run and add-port.
const portHelp = `A port is written DEVICE[,OPTION...], with the options

    name=NAME              the port's name (default the device's name)
    queues=N               number of queues of a tap, or of pairs of queues of a vhost-user guest
    server, client         of --vhost-user and --stream: listen at the path (default), or connect
                           to who listens there, again whenever it is gone
    mtu=BYTES              largest frame that leaves by the port (default the device's current MTU)
    vlan=N                 the port is in VLAN N only, untagged
    trunk=LIST             the VLANs that the port carries tagged: 2-5,7; or all
    native=N               with trunk: the VLAN of untagged frames
    forward=LIST           forward link-local protocols that arrive on the port:
                           lldp, lacp, eapol, ptp, elmi, or all
    isolated               no frames to and from other isolated ports
    hairpin                frames may leave by the port that they arrived on
    no-learning            learn no addresses behind the port
    no-flood               no frames with unknown destinations leave by the port
    no-loop-guard          never stop the port because of a loop
    mac=MAC                accept only frames with this source (repeatable)
    port-security=LIST     drop forged frames, as vmnet-switch(8) explains; all, or a list of
                           mac,ip,arp,nd,dhcp,ra,vlan; needs one mac=MAC
    ip=ADDRESS             with port-security: an address of the guest, or a network (repeatable)
    ethertype=TYPE         with port-security: one more EtherType that passes, such as 0x88f7
                           (repeatable)
    rate-up=RATE           how much the guest behind the port may send: 100M, 20kpps or 100M,20kpps;
                           the port is read less often while it sends more
    rate-down=RATE         how much it may receive; more is dropped
    burst=BYTES            with one of them: what may pass at once, such as 256k
    max-addresses=N        learn at most N addresses behind the port
    storm=N                flood at most N broadcasts, multicast frames and frames with unknown
                           destinations from the port, each in a second; storm-broadcast=N,
                           storm-multicast=N and storm-unknown=N set one of them
    storm-refused=N        read the port less often while it sends more than N undeliverable
                           frames in a second, such as frames over these limits; for guests

As soon as a port has a VLAN, the switch separates VLANs, and ports without vlan and trunk are in
VLAN 1, untagged; until then tags pass unchanged, and all ports are in one network.` + ownHelp

// devicePorts adds the flags --tap, --packet, --vxlan, --tun, --vhost-user and --stream, which
// append to ports in the order given.
func devicePorts(cmd *cobra.Command, a *app, ports *[]wantedPort) {
	for _, kind := range []struct{ name, word, usage string }{
		{
			control.Tap, "DEVICE",
			"a port on the queues of a tap, which is created if it is missing and opened if it is persistent (repeatable)",
		},
		{
			control.Packet, "DEVICE",
			"a port on an existing device, by a packet socket, such as an uplink or a QEMU's tap (repeatable)",
		},
		{
			control.VXLAN, "",
			"a port to other hosts by VXLAN, which needs no privilege (repeatable)",
		},
		{
			control.Tun, "DEVICE",
			"a port for the host's IP, by a tun with the addresses that follow it (repeatable)",
		},
		{
			control.VhostUser, "PATH",
			"a port for a guest that shares its memory, by the socket of its vhost-user frontend (repeatable)",
		},
		{
			control.Stream, "PATH",
			"a port for frames over a stream socket, as of QEMU's -netdev stream or of passt (repeatable)",
		},
	} {
		form := kind.word + "[,OPTION...]"
		if kind.name == control.VXLAN {
			form = "[NAME,]vni=N,OPTION..."
		}
		cmd.Flags().Var(nicflags.Value(form, "", func(s string) error {
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
	complete(cmd, control.VXLAN, cobra.NoFileCompletions)
	complete(cmd, control.Tun, cobra.NoFileCompletions)
}

// isNew returns an error if another port has the same name or device.
func (w *wantedPort) isNew(others []wantedPort) error {
	for _, o := range others {
		switch {
		case o.Name == w.Name:
			return fmt.Errorf("port %s is given twice", w.Name)
		case o.Device == w.Device && w.Device != "":
			return fmt.Errorf("device %s is given twice", w.Device)
		}
	}
	return nil
}

// parsePort parses DEVICE[,OPTION...]. A list may continue after a comma.
func parsePort(kind, text string) (wantedPort, error) {
	words := strings.Split(text, ",")
	w := wantedPort{Port: control.Port{Kind: kind, Name: words[0], Device: words[0]}, queues: 1}
	if err := w.path(); err != nil {
		return w, err
	}
	words = words[1:]
	if kind == control.VXLAN {
		w.VXLAN, w.Device = &vport.VXLAN{}, ""
		if strings.Contains(w.Name, "=") { // the first word is an option
			w.Name, words = "", strings.Split(text, ",")
		}
	}
	if kind == control.Tun {
		w.Tun = &vport.Tun{}
	}
	options := w.options()
	seen := map[string]bool{}
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
		case seen[key] && !repeatable[key]:
			return w, fmt.Errorf("option %s is given twice", key)
		case !has:
			value = f.NoOptDefVal
		}
		seen[key] = true
		if err := f.Value.Set(value); err != nil {
			return w, fmt.Errorf("option %s: %w", option, err)
		}
	}
	if w.connect && w.listen {
		return w, errors.New("client and server exclude each other")
	}
	if w.VXLAN != nil && w.Name == "" {
		w.Name = fmt.Sprintf("vxlan%d", w.VXLAN.VNI)
	}
	if w.Tun != nil && len(w.Config.MACs) == 0 {
		w.Config.MACs = []net.HardwareAddr{w.ownMAC()}
	}
	if w.Tun != nil {
		w.Config.NoFlood = true // it is for one address, which the switch knows
	}
	if err := w.secure(); err != nil {
		return w, err
	}
	return w, w.Validate()
}

// atPath reports whether the port's device is the path of a socket.
func (w *wantedPort) atPath() bool { return w.Kind == control.VhostUser || w.Kind == control.Stream }

// path completes the path of a socket, which is also its device. Its last part is the port's name.
func (w *wantedPort) path() (err error) {
	if !w.atPath() {
		return nil
	}
	if w.Device == "" || strings.HasSuffix(w.Device, "/") {
		return fmt.Errorf("%q: want the path of a socket", w.Device)
	}
	w.Name = filepath.Base(w.Device)
	w.Device, err = filepath.Abs(w.Device)
	return err
}

// repeatable are the options that may be given several times.
var repeatable = map[string]bool{"mac": true, "ip": true, "ethertype": true, "remote": true, "address": true}

// secure completes the port security by the guest's address.
func (w *wantedPort) secure() error {
	s := &w.Config.Security
	switch {
	case s.IsZero() && len(s.IPs)+len(s.EtherTypes) > 0:
		return errors.New("ip and ethertype need port-security")
	case s.IsZero():
	case len(w.Config.MACs) != 1:
		return fmt.Errorf("port-security needs one mac=MAC, the guest's, not %d", len(w.Config.MACs))
	default:
		s.MAC = w.Config.MACs[0]
	}
	return nil
}

// continues reports whether a word belongs to the list that an option has begun.
func continues(option, word string) bool {
	switch {
	case strings.HasPrefix(option, "trunk="):
		return word != "" && word[0] >= '0' && word[0] <= '9'
	case strings.HasPrefix(option, "port-security="):
		_, err := portsec.ParseChecks(word)
		return err == nil
	case strings.HasPrefix(option, "rate-"):
		l, err := portrate.ParseLimit(word)
		return err == nil && !l.IsZero()
	case strings.HasPrefix(option, "forward="):
		_, err := brport.ParseProtocols(word)
		return err == nil
	}
	return false
}

func (w *wantedPort) options() *pflag.FlagSet {
	f := pflag.NewFlagSet("port", pflag.ContinueOnError)
	nicflags.AddPort(f, &w.Config.Settings)
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
	w.securityOptions(f)
	nicflags.AddRates(f, &w.Config.Rates)
	switch w.Kind {
	case control.Tap:
		upTo(f, "queues", &w.queues, control.MaxQueues)
	case control.VhostUser:
		upTo(f, "queues", &w.Queues, control.MaxPairs)
	case control.VXLAN:
		w.vxlanOptions(f)
	case control.Tun:
		w.tunOptions(f)
	}
	if w.atPath() {
		f.BoolVar(&w.connect, "client", false, "")
		f.BoolVar(&w.listen, "server", false, "")
	}
	return f
}

// upTo adds an option that sets to to a number from 1 to most.
func upTo(f *pflag.FlagSet, name string, to *int, most int) {
	f.Var(nicflags.Value("N", "", func(s string) (err error) {
		if *to, err = strconv.Atoi(s); err != nil || *to < 1 || *to > most {
			return fmt.Errorf("want 1 to %d", most)
		}
		return nil
	}), name, "")
}

func (w *wantedPort) securityOptions(f *pflag.FlagSet) {
	s := &w.Config.Security
	f.Var(nicflags.Value("LIST", "", func(text string) (err error) {
		s.Checks, err = portsec.ParseChecks(text)
		return err
	}), "port-security", "")
	f.Var(nicflags.Value("ADDRESS", "", func(text string) error {
		p, err := portsec.ParseIP(text)
		s.IPs = append(s.IPs, p)
		return err
	}), "ip", "")
	f.Var(nicflags.Value("TYPE", "", func(text string) error {
		t, err := portsec.ParseEtherType(text)
		s.EtherTypes = append(s.EtherTypes, t)
		return err
	}), "ethertype", "")
}

// limit adds an option that sets all of to to a number of at least 1.
func limit(f *pflag.FlagSet, name string, to ...*int) {
	f.Var(nicflags.Value("N", "", func(s string) error {
		n, err := nicflags.Positive(s)
		if err != nil {
			return err
		}
		for _, p := range to {
			*p = n
		}
		return nil
	}), name, "")
}

// portSettings returns a port's settings in short, in the form of bridge show.
func portSettings(cfg vport.Config) string {
	words := strings.FieldsFunc(cfg.Settings.String(), func(r rune) bool { return r == ';' })
	for _, mac := range cfg.MACs {
		words = append(words, "mac:"+mac.String())
	}
	words = append(words, securityWords(cfg.Security)...)
	if !cfg.Rates.IsZero() {
		words = append(words, cfg.Rates.String())
	}
	if cfg.NoLoopGuard {
		words = append(words, "no-loop-guard")
	}
	if cfg.Down {
		words = append(words, "down")
	}
	storm := cfg.Storm
	all := 0 // the value of storm=
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

// securityWords returns port security without the MAC address, which is a setting of the port.
func securityWords(s portsec.Config) (words []string) {
	if s.IsZero() {
		return nil
	}
	words = append(words, "port-security:"+s.Checks.String())
	for _, p := range s.IPs {
		words = append(words, "ip:"+portsec.FormatIP(p))
	}
	for _, t := range s.EtherTypes {
		words = append(words, "ethertype:"+t.String())
	}
	return words
}
