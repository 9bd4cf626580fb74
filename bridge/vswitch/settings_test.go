package vswitch

import (
	"errors"
	"io/fs"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// known returns what the FDB has, as "port address", with "static" and the VLAN.
func (l *lan) known() (all []string) {
	by := map[int]string{}
	for _, p := range l.sw.Ports() {
		by[p.PortIndex()] = p.Name()
	}
	for _, e := range l.sw.FDB().Dump() {
		text := by[e.Port] + " " + e.Key.MAC().String()[15:] + "@" + string(rune('0'+e.Key.VLAN()))
		if e.Static {
			text += " static"
		}
		all = append(all, text)
	}
	slices.Sort(all)
	return all
}

// TestSetPort changes one setting after the other of port a, behind which two addresses are known.
// Who then gets a broadcast from there, and what the FDB has, must follow, and nothing else change.
func TestSetPort(t *testing.T) {
	bcast := func(src byte) []byte { return etherFrame(all, mac(src), nil, 46) }
	learned := []string{"a 01@1", "a 09@1", "b 02@1"}
	for what, tc := range map[string]struct {
		was, is vport.Config
		to      []string // who gets a broadcast of address 1
		known   []string
	}{
		"the same":     {is: vport.Config{}, to: []string{"b", "v"}, known: learned},
		"isolated":     {is: vport.Config{Settings: brport.Settings{Isolated: true}}, to: []string{"b"}, known: learned},
		"a VLAN":       {is: access(2), to: []string{"v"}, known: []string{"a 01@2", "b 02@1"}},
		"back":         {was: access(2), is: vport.Config{}, to: []string{"b"}, known: []string{"a 01@1", "b 02@1"}},
		"native VLAN":  {is: trunk(1, 2), to: []string{"b"}, known: learned},
		"locked":       {is: vport.Config{MACs: []net.HardwareAddr{mac(1)}}, to: []string{"b", "v"}, known: []string{"a 01@1 static", "b 02@1"}},
		"not locked":   {was: vport.Config{MACs: []net.HardwareAddr{mac(1)}}, is: vport.Config{}, to: []string{"b", "v"}, known: []string{"a 01@1", "b 02@1"}},
		"another lock": {is: vport.Config{MACs: []net.HardwareAddr{mac(9)}}, known: []string{"a 09@1 static", "b 02@1"}},
		"security": {
			is: vport.Config{
				MACs:     []net.HardwareAddr{mac(1)},
				Security: portsec.Config{Checks: portsec.MAC, MAC: mac(1)},
			},
			to: []string{"b", "v"}, known: []string{"a 01@1 static", "b 02@1"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			v := vport.Config{Settings: brport.Settings{Isolated: true}}
			if tc.was.HasVLANs() || tc.is.HasVLANs() {
				v.VLAN = 2
			}
			l := newLAN(t, map[string]vport.Config{"a": tc.was, "b": {}, "v": v})
			l.send("a", bcast(1))
			if len(tc.was.MACs) == 0 {
				l.send("a", bcast(9))
			}
			l.send("b", bcast(2))
			moves := l.sw.FDB().Stats().Moves
			if err := l.sw.SetPort("a", tc.is); err != nil {
				t.Fatal(err)
			}
			if got := names(l.send("a", bcast(1))); !slices.Equal(got, tc.to) {
				t.Errorf("the broadcast went to %q, want %q", got, tc.to)
			}
			if got := l.known(); !slices.Equal(got, tc.known) || l.sw.FDB().Stats().Moves != moves {
				t.Errorf("the FDB has %q, want %q", got, tc.known)
			}
		})
	}
}

// TestSetPortRefuses: a port that cannot have the settings keeps its former ones, with its static
// addresses.
func TestSetPortRefuses(t *testing.T) {
	locked := vport.Config{MACs: []net.HardwareAddr{mac(1)}}
	l := newLAN(t, map[string]vport.Config{"a": locked, "b": {MACs: []net.HardwareAddr{mac(2)}}})
	before := l.known()
	for _, tc := range []struct {
		port string
		cfg  vport.Config
		want error
	}{
		{"nobody", vport.Config{}, fs.ErrNotExist},
		{"a", vport.Config{MACs: []net.HardwareAddr{mac(3), mac(1), mac(2)}}, fs.ErrExist},
		{"a", vport.Config{MTU: 9000}, brport.ErrInvalid},
		{"a", access(5000), brport.ErrInvalid},
	} {
		if err := l.sw.SetPort(tc.port, tc.cfg); !errors.Is(err, tc.want) {
			t.Errorf("%s %+v: %v, want %v", tc.port, tc.cfg, err, tc.want)
		}
	}
	if got := l.known(); !slices.Equal(got, before) {
		t.Errorf("the FDB has %q, want %q", got, before)
	}
	if got := names(l.send("a", etherFrame(mac(2), mac(3), nil, 46))); len(got) > 0 {
		t.Errorf("a frame from an address that was refused went to %q", got)
	}
}

// TestSetPortLosesNoFrame sends frames through two ports whose settings change all the time.
func TestSetPortLosesNoFrame(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"a": {}, "b": {}, "other": access(7)})
	l.send("b", etherFrame(all, mac(2), nil, 46))
	ends := make(chan struct{})
	changed := make(chan error, 1)
	go func() {
		changed <- func() error {
			for i := 0; ; i++ {
				for _, name := range []string{"a", "b"} {
					cfg := trunk(1, 7)
					if i%2 == 0 {
						cfg = vport.Config{Storm: vport.GuestStorm(1000), MaxAddresses: 10 + i%7, MTU: 1000 + i%400}
					}
					if err := l.sw.SetPort(name, cfg); err != nil {
						return err
					}
				}
				select {
				case <-ends:
					return nil
				default:
				}
			}
		}()
	}()
	a, b := l.stations["a"], l.stations["b"]
	for i := range 500 {
		frame := etherFrame(mac(2), mac(1), nil, 46+i%100)
		if _, err := unix.Write(a.fd, frame); err != nil {
			t.Fatal(err)
		}
		var got []byte
		nstest.Eventually(t, 20*time.Second, "the frame arrives", func() bool { got = b.read(); return got != nil })
		if !slices.Equal(got, frame) {
			t.Fatalf("frame %d: got %x", i, got)
		}
	}
	close(ends)
	if err := <-changed; err != nil {
		t.Error(err)
	}
	if got, want := l.known(), []string{"a 01@1", "b 02@1"}; !slices.Equal(got, want) {
		t.Errorf("the FDB has %q, want %q", got, want)
	}
	if n := len(l.stations["other"].read()); n > 0 {
		t.Error("a frame was flooded")
	}
}
