package qmp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/nstest"
	"vmnet/step"
)

// guestless answers like a QEMU without devices, keeps the commands, and refuses those in refusals.
type guestless struct {
	mu       sync.Mutex
	log      []string
	refusals map[string]string // command: description
	mute     string            // from this command on nothing is answered
	muted    chan struct{}     // closed when that command has come
	dieAt    int               // the connection ends after this many commands; 0: never
}

// silentFrom returns a guestless that answers nothing from a command on, and a context whose
// deadline passes once that command has come, however slow the machine is.
func silentFrom(t *testing.T, command string) (*guestless, context.Context) {
	g := &guestless{mute: command, muted: make(chan struct{})}
	return g, expiring{t.Context(), g.muted}
}

// expiring is a context whose deadline passes when a channel is closed.
type expiring struct {
	context.Context
	expired <-chan struct{}
}

func (c expiring) Done() <-chan struct{} { return c.expired }

func (c expiring) Err() error {
	select {
	case <-c.expired:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func (g *guestless) serve(s *session) {
	silent := false
	for n := 1; ; n++ {
		r, ok := s.Next()
		if !ok {
			return
		}
		g.mu.Lock()
		g.log = append(g.log, strings.TrimSpace(r.Execute+" "+fmt.Sprint(target(r))))
		g.mu.Unlock()
		if n == g.dieAt {
			return
		}
		if !silent && r.Execute == g.mute {
			silent = true
			close(g.muted)
		}
		if silent {
			continue
		}
		if desc, refuse := g.refusals[r.Execute]; refuse {
			s.Say(r.Refuses("GenericError", desc))
		} else if r.Execute == "qom-list" || r.Execute == "device-list-properties" {
			s.Say(r.Returns(`[]`))
		} else {
			s.Say(r.Returns(`{}`))
		}
		if r.Execute == "device_del" {
			s.Say(`{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/x/virtio-backend"}}`,
				fmt.Sprintf(`{"event": "DEVICE_DELETED", "data": {"device": %q, "path": "/x"}}`, r.Arguments["id"]))
		}
	}
}

func (g *guestless) commands() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.log)
}

func target(r request) any {
	for _, key := range []string{"fdname", "id"} {
		if v := r.Arguments[key]; v != nil {
			return v
		}
	}
	return ""
}

func testNIC() NIC {
	mac, _ := net.ParseMAC("52:54:00:00:00:01")
	return NIC{
		ID: "n", Queues: 2, Vhost: true, Netns: true, Label: true, MAC: mac, HostMTU: 1500, Bus: "port0",
		Addr: "1", Options: map[string]string{"mrg_rxbuf": "off"},
	}
}

// testFiles are those of testNIC.
func testFiles(t *testing.T) *Files {
	f := nullFile(t)
	return &Files{Queues: []*os.File{f, f}, Vhosts: []*os.File{f, f}, Netns: f, Label: f}
}

var (
	plugged = []string{
		"qom-list", "getfd n-netns", "getfd n-label", "getfd n-q0", "getfd n-q1", "getfd n-vhost0",
		"getfd n-vhost1", "netdev_add n-netdev", "device-list-properties", "device_add n",
	}
	restored = []string{
		"netdev_del n-netdev", "closefd n-vhost1", "closefd n-vhost0", "closefd n-q1", "closefd n-q0",
		"closefd n-label", "closefd n-netns",
	}
)

func TestPlugSteps(t *testing.T) {
	type row struct{ Name, Text string }
	var got []row
	for _, s := range (*Conn)(nil).PlugSteps(testNIC(), nil) {
		got = append(got, row{s.Name, s.Text})
	}
	want := []row{
		{"check n", `{"execute":"qom-list","arguments":{"path":"/machine/peripheral"}}`},
		{"getfd n-netns", `{"execute":"getfd","arguments":{"fdname":"n-netns"}}`},
		{"getfd n-label", `{"execute":"getfd","arguments":{"fdname":"n-label"}}`},
		{"getfd n-q0", `{"execute":"getfd","arguments":{"fdname":"n-q0"}}`},
		{"getfd n-q1", `{"execute":"getfd","arguments":{"fdname":"n-q1"}}`},
		{"getfd n-vhost0", `{"execute":"getfd","arguments":{"fdname":"n-vhost0"}}`},
		{"getfd n-vhost1", `{"execute":"getfd","arguments":{"fdname":"n-vhost1"}}`},
		{
			"netdev_add n-netdev",
			`{"execute":"netdev_add","arguments":{"fds":"n-q0:n-q1","id":"n-netdev","type":"tap","vhost":true,"vhostfds":"n-vhost0:n-vhost1"}}`,
		},
		{
			"device_add n",
			`{"execute":"device_add","arguments":{"addr":"1","bus":"port0","driver":"virtio-net-pci","host_mtu":1500,"id":"n","mac":"52:54:00:00:00:01","mq":true,"mrg_rxbuf":"off","netdev":"n-netdev","vectors":6}}`,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPlugIsUndoneWhereverQEMURefuses(t *testing.T) { bothWays(t, plugIsUndoneWhereverQEMURefuses) }

func plugIsUndoneWhereverQEMURefuses(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	for command, want := range map[string][]string{
		"qom-list":               {"qom-list"},
		"getfd":                  {"qom-list", "getfd n-netns", "closefd n-netns"},
		"netdev_add":             slices.Concat(plugged[:8], restored),
		"device-list-properties": slices.Concat(plugged[:9], restored),
		"device_add":             slices.Concat(plugged, restored),
	} {
		t.Run(command, func(t *testing.T) {
			g := &guestless{refusals: map[string]string{
				command:   "no way",
				"closefd": "File descriptor named 'n' not found",
			}}
			err := fakeConn(t, g.serve).Plug(within(t, 10*time.Second), testNIC(), testFiles(t))
			if want := command + ": no way"; err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("error %v, want ... %s", err, want)
			}
			if diff := cmp.Diff(want, g.commands()); diff != "" {
				t.Errorf("commands (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlugLeavesAnotherNICAlone(t *testing.T) { bothWays(t, plugLeavesAnotherNICAlone) }

func plugLeavesAnotherNICAlone(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	g := &guestless{refusals: map[string]string{"netdev_add": "Duplicate ID 'n-netdev'"}}
	if err := fakeConn(t, g.serve).Plug(within(t, 10*time.Second), testNIC(), testFiles(t)); !refused(err) {
		t.Error(err)
	}
	if slices.Contains(g.commands(), "netdev_del n-netdev") {
		t.Error("the netdev of another NIC was removed")
	}

	c := fakeConn(t, func(s *session) {
		r, _ := s.Next()
		s.Say(r.Returns(`[{"name": "type", "type": "string"}, {"name": "n", "type": "child<virtio-net-pci>"}]`))
		if r, ok := s.Next(); ok {
			t.Errorf("%s was sent", r.Execute)
		}
	})
	if err := c.Plug(within(t, 10*time.Second), testNIC(), testFiles(t)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
}

func TestLaterFailureUnplugsTheDevice(t *testing.T) { bothWays(t, laterFailureUnplugsTheDevice) }

func laterFailureUnplugsTheDevice(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	var g guestless
	fault := errors.New("fault")
	c := fakeConn(t, g.serve)
	err := step.Run(within(t, 20*time.Second), c.PlugSteps(testNIC(), testFiles(t)),
		func(ctx context.Context, s step.Step, do func(context.Context) error) error {
			if err := do(ctx); err != nil || !strings.HasPrefix(s.Name, "device_add") {
				return err
			}
			return fault
		})
	if !errors.Is(err, fault) || strings.Contains(err.Error(), "undo") {
		t.Errorf("got %v, want the fault alone", err)
	}
	got := slices.DeleteFunc(g.commands(), func(s string) bool { return s == "device_del n" })
	if diff := cmp.Diff(slices.Concat(plugged, restored), got); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	if !slices.Contains(g.commands(), "device_del n") {
		t.Error("no device_del was sent")
	}
}

// Death after each command: every error says so, soon, and nothing hangs.
func TestPlugWhileQEMUDies(t *testing.T) { bothWays(t, plugWhileQEMUDies) }

func plugWhileQEMUDies(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	for k := 1; k <= len(plugged); k++ {
		t.Run(plugged[k-1], func(t *testing.T) {
			g := &guestless{dieAt: k}
			c := fakeConn(t, g.serve)
			start := time.Now()
			err := c.Plug(within(t, 20*time.Second), testNIC(), testFiles(t))
			if !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
			if diff := cmp.Diff(plugged[:k], g.commands()); diff != "" {
				t.Errorf("commands (-want +got):\n%s", diff)
			}
		})
	}
}

// Silence from each command on: the whole way back is sent all the same.
func TestPlugWhileQEMUFallsSilent(t *testing.T) {
	for _, tc := range []struct {
		mute string
		want []string
	}{
		{"getfd", []string{"qom-list", "getfd n-netns", "closefd n-netns"}},
		{"netdev_add", slices.Concat(plugged[:8], restored)},
		{"device_add", slices.Concat(plugged, []string{"device_del n"}, restored)},
	} {
		t.Run(tc.mute, func(t *testing.T) {
			t.Parallel()
			g, ctx := silentFrom(t, tc.mute)
			c := fakeConn(t, g.serve)
			start := time.Now()
			err := c.Plug(ctx, testNIC(), testFiles(t))
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnanswered) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d > undoReply+10*time.Second {
				t.Errorf("took %v", d)
			}
			_ = c.Close()
			want := append(tc.want, "getfd "+holdName, "closefd "+holdName)
			nstest.Eventually(t, 20*time.Second, "all commands have come", func() bool {
				return len(g.commands()) >= len(want)
			})
			if diff := cmp.Diff(want, g.commands()); diff != "" {
				t.Errorf("commands (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRollback(t *testing.T) { bothWays(t, rollback) }

func rollback(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	var g guestless
	if err := fakeConn(t, g.serve).Rollback(within(t, 20*time.Second), "n", 2); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(restored, g.commands()); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

func TestValidate(t *testing.T) {
	mac := func(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
	for _, tc := range []struct {
		text string // in the error; empty: valid
		edit func(*NIC)
	}{
		{"", func(*NIC) {}},
		{"", func(n *NIC) { n.Model, n.Queues, n.Vhost, n.HostMTU = "e1000e", 1, false, 0 }},
		{"", func(n *NIC) { n.Backend, n.Queues, n.Vhost = Dgram, 1, false }},
		{"one queue", func(n *NIC) { n.Backend, n.Vhost = Socket, false }},
		{"no vhost", func(n *NIC) { n.Backend, n.Queues = Dgram, 1 }},
		{"not tap, dgram, socket or vhost-user", func(n *NIC) { n.Backend = "l2tpv3" }},
		{"device id", func(n *NIC) { n.ID = "" }},
		{"device id", func(n *NIC) { n.ID = "0n" }},
		{"device id", func(n *NIC) { n.ID = "n:1" }},
		{"netdev id", func(n *NIC) { n.Netdev = "a b" }},
		{"0 queues", func(n *NIC) { n.Queues = 0 }},
		{"-1 queues", func(n *NIC) { n.Queues = -1 }},
		{"queues: 1 to 1024", func(n *NIC) { n.Queues = 1025 }},
		{"has one queue", func(n *NIC) { n.Model = "e1000e" }},
		{"is not a unicast Ethernet address", func(n *NIC) { n.MAC = mac("01:00:5e:00:00:01") }},
		{"is not a unicast Ethernet address", func(n *NIC) { n.MAC = mac("02:00:00:00:00:00:00:01") }},
		{"cannot show the guest", func(n *NIC) { n.Model, n.Queues, n.Vhost = "e1000e", 1, false }},
		{"MTU 67", func(n *NIC) { n.HostMTU = 67 }},
		{"MTU 65536", func(n *NIC) { n.HostMTU = 65536 }},
		{"another setting determines it", func(n *NIC) { n.Options = map[string]string{"netdev": "x"} }},
	} {
		n := testNIC()
		tc.edit(&n)
		err := n.Validate()
		if (err == nil) != (tc.text == "") || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("got %v, want %q", err, tc.text)
		}
	}
}

// TestFiles: the files that are open are those that the NIC says.
func TestFiles(t *testing.T) {
	one := nullFile(t)
	for _, tc := range []struct {
		text string // in the error; empty: valid
		edit func(*Files)
	}{
		{"", func(*Files) {}},
		{"has 0 queues", func(f *Files) { *f = Files{} }},
		{"not those of a NIC of 2 queues", func(f *Files) { f.Queues, f.Vhosts = f.Queues[:1], f.Vhosts[:1] }},
		{"not those of a NIC of 2 queues (vhost true", func(f *Files) { f.Vhosts = nil }},
		{"netns true", func(f *Files) { f.Netns = nil }},
		{"label true", func(f *Files) { f.Label = nil }},
		{"is nil", func(f *Files) { f.Queues[0] = nil }},
		{"is nil", func(f *Files) { f.Vhosts[1] = nil }},
		{"each queue needs one", func(f *Files) { f.Vhosts = f.Vhosts[:1] }},
		{"not those", func(f *Files) { f.Queues, f.Vhosts = append(f.Queues, one), append(f.Vhosts, one) }},
	} {
		f := testFiles(t)
		tc.edit(f)
		err := f.check(testNIC())
		if (err == nil) != (tc.text == "") || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("got %v, want %q", err, tc.text)
		}
	}
	bare := NIC{ID: "n", Queues: 2}
	if err := testFiles(t).check(bare); err == nil {
		t.Error("files that the NIC does not have are taken")
	}
	if n := len(testFiles(t).All()); n != 6 {
		t.Errorf("%d files, want 6", n)
	}
}

func TestTypeValue(t *testing.T) {
	for _, tc := range []struct {
		name, kind, value string
		want              any
	}{
		{"mrg_rxbuf", "bool", "off", false},
		{"mrg_rxbuf", "bool", "TRUE", true},
		{"mrg_rxbuf", "bool", "perhaps", "perhaps"},
		{"rx_queue_size", "uint16", "512", int64(512)},
		{"x", "uint64", "0xffffffffffffffff", uint64(1<<64 - 1)},
		{"speed", "int32", "-1", int64(-1)},
		{"speed", "int32", "fast", "fast"},
		{"addr", "int32", "5", "5"},
		{"mac", "str", "52", "52"},
		{"disable-legacy", "OnOffAuto", "on", "on"},
		{"unknown", "", "1", "1"},
	} {
		if got := typeValue(tc.name, tc.kind, tc.value); got != tc.want {
			t.Errorf("%s (%s) = %q: got %v (%T), want %v (%T)", tc.name, tc.kind, tc.value, got, got, tc.want, tc.want)
		}
	}
}
