package tapmgr_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/backend"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/tun"
	"vmnet/step"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// tryLaunch plans NICs and makes them.
func (h *host) tryLaunch(ctx context.Context, specs ...nic.Spec) (*backend.Launch, error) {
	l, err := h.Host().PlanLaunch(ctx, specs...)
	if err == nil {
		err = l.Make(ctx)
	}
	return l, err
}

// launched starts a guest with the NICs, as who becomes its VMM would.
func (h *host) launched(c testvm.Config, specs ...nic.Spec) (*guest, *backend.Launch) {
	h.Helper()
	c.Name = h.name("P3")
	for i := range specs {
		specs[i].VM = c.Name
	}
	l, err := h.tryLaunch(h.context(20*time.Second), specs...)
	if err != nil {
		h.Fatal(err)
	}
	next := 3
	take := func(files []*os.File) (fds []int) {
		for _, f := range files {
			c.ExtraFiles = append(c.ExtraFiles, f)
			fds = append(fds, next)
			next++
		}
		return fds
	}
	for _, n := range l.NICs {
		args, err := n.Device.Args(take(n.Files.Queues), take(n.Files.Vhosts))
		take(slices.DeleteFunc([]*os.File{n.Files.Netns, n.Files.Label}, func(f *os.File) bool { return f == nil }))
		if err != nil {
			h.Fatal(err)
		}
		c.ExtraArgs = append(c.ExtraArgs, args...)
	}
	g := &guest{testvm.StartT(h, c), c.Name}
	if err := l.Close(); err != nil {
		h.Error(err)
	}
	return g, l
}

func TestLiveLaunchedNICsAreLikeAttachedOnes(t *testing.T) {
	t.Parallel()
	testvm.Require(t)
	h := newHost(t)
	h.wire()
	g, l := h.launched(testvm.Config{},
		nic.Spec{NIC: "net0", Bridge: "br0", Queues: 2, Vhost: nic.VhostOff},
		nic.Spec{NIC: "net1", Lower: &nic.Lower{Kind: "macvtap", Device: "eth0"}, Vhost: nic.VhostOff})
	h.reach(g, l.NICs[0].NIC, guestAddr)
	h.use(g, l.NICs[1].NIC, "10.8.0.2/24")
	h.pings(g, farAddr)
	nics, err := h.List(g.name)
	if err != nil || len(nics) != 2 || nics[0].PID != g.Pid() || nics[0].State != "forwarding" || nics[0].Queues != 2 ||
		nics[1].Type != "macvtap" || nics[1].State != nic.Up {
		t.Errorf("list %+v, %v", nics, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
	if res, err := h.Attach(h.context(20*time.Second), g.spec("net0")); err != nil || res.Changed {
		t.Errorf("the same attach: %+v, %v", res, err)
	}
	for _, nic := range []string{"net0", "net1"} {
		h.detach(g, nic)
		h.nothingLeft(g, nic)
	}
	h.free()
	h.attach(g.lowerSpec("net1", nic.Lower{}))
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	h.free()
}

func TestLiveLaunchedNICsGoWithTheirVMM(t *testing.T) {
	testvm.Require(t)
	h := newHost(t)
	h.wire()
	g, l := h.launched(testvm.Config{Paused: true},
		nic.Spec{NIC: "net0", Bridge: "br0"},
		nic.Spec{NIC: "net1", Lower: &nic.Lower{Kind: "macvtap", Device: "eth0"}})
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	h.gone(l.NICs[0].NIC.Interface)
	h.free()
}

func TestLaunchMakesAllOrNothing(t *testing.T) {
	h := newUserHost(t)
	ctx := h.context(10 * time.Second)
	good := nic.Spec{Target: nic.Target{VM: "P3"}, NIC: "net0", Bridge: "br0"}
	bad := good
	bad.NIC, bad.Bridge = "net1", "br9"
	if _, err := h.tryLaunch(ctx, good, bad); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), "P3/net1") {
		t.Errorf("got %v, want br9 to be missed", err)
	}
	if _, err := h.tryLaunch(ctx, good, good); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "--nic") {
		t.Errorf("got %v, want the second one's name to be taken", err)
	}
	h.gone("P3-net0")
	good.Queues = nic.QueuesAuto
	if _, err := h.tryLaunch(ctx, good); !errors.Is(err, nic.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestPlainTap(t *testing.T) {
	h := newUserHost(t)
	h.Host().Owner = 1000
	tap, err := h.PlainTap("br0", brport.Settings{Isolated: true}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	l, err := h.nl.Link(tap.Name)
	if err != nil || !l.Up || l.Port == nil || l.MAC[0] != 0xfe || !l.Tun.VnetHdr {
		t.Errorf("made %+v, %v", l, err)
	}
	nics, err := h.ListAll(t.Context(), "")
	if err != nil || len(nics) != 1 || nics[0].Interface != tap.Name || nics[0].Source != "br0" ||
		nics[0].UID != 1000 || nics[0].Port != "isolated" || nics[0].PID != os.Getpid() {
		t.Errorf("list %+v, %v", nics, err)
	}
	for uid, want := range map[int]int{1000: 1, 1001: 0} {
		if n, err := h.Host().Owned(uid); err != nil || n != want {
			t.Errorf("uid %d owns %d, %v, want %d", uid, n, err, want)
		}
	}
	if _, err := h.Reconcile(h.context(20*time.Second), false); err != nil {
		t.Error(err)
	}
	if _, err := h.nl.Link(tap.Name); err != nil {
		t.Errorf("after reconcile: %v", err)
	}
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	h.gone(tap.Name)
	if _, err := h.PlainTap("br9", brport.Settings{}, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no bridge: %v", err)
	}
}

// yes allows everything.
func yes() error { return nil }

func TestScripts(t *testing.T) {
	h := newUserHost(t)
	tap, err := tun.Create(h.ns, "vm7", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	h.Host().Owner = 1000 // the tap's queue is open here
	for range 2 {
		if err := h.Host().IfUp("vm7", "br0", brport.Settings{Hairpin: true}, yes); err != nil {
			t.Fatal(err)
		}
	}
	l, err := h.nl.Link("vm7")
	if err != nil || !l.Up || l.Port == nil || !l.Port.Hairpin {
		t.Errorf("up: %+v, %v", l, err)
	}
	if err := h.Host().IfDown("vm7"); err != nil {
		t.Fatal(err)
	}
	if l, err = h.nl.Link("vm7"); err != nil || l.Up || l.Master != 0 || l.Alias != "" {
		t.Errorf("down: %+v, %v", l, err)
	}
	if err := h.Host().IfDown("vm7"); err == nil || !strings.Contains(err.Error(), "left alone") {
		t.Errorf("down again: %v, want it to be left alone", err)
	}
	if err := h.Host().IfDown("vm8"); err != nil {
		t.Errorf("one that is gone: %v", err)
	}
	for name, want := range map[string]string{
		"br0": "is not a tap", "vm8": "no such network device",
		"a/b": "1 to 15 bytes",
	} {
		if err := h.Host().IfUp(name, "br0", brport.Settings{}, yes); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// TestScriptsOfOthers has no queue of the tap open.
func TestScriptsOfOthers(t *testing.T) {
	h := newUserHost(t)
	h.ip("tuntap", "add", "vm7", "mode", "tap")
	if err := h.Host().IfUp("vm7", "br0", brport.Settings{}, yes); err != nil {
		t.Errorf("root: %v", err)
	}
	h.Host().Owner = 1000
	for _, err := range []error{h.Host().IfUp("vm7", "br0", brport.Settings{}, yes), h.Host().IfDown("vm7")} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("another user: %v", err)
		}
	}
}

// serving runs Serve and gives its other end.
func (h *host) serving(allow func(nic.Spec) error) (client *fdpass.Socket, done chan error) {
	h.Helper()
	client, theirs, err := fdpass.Pair()
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = client.Close() })
	fd, err := syscall.Dup(int(theirs.Fd())) // an fd has one owner
	if err == nil {
		err = theirs.Close()
	}
	if err != nil {
		h.Fatal(err)
	}
	sock, err := fdpass.Inherited(fd)
	if err != nil {
		h.Fatal(err)
	}
	done = make(chan error, 1)
	go func() {
		done <- h.Host().Serve(h.context(10*time.Second), sock, allow)
		_ = sock.Close()
	}()
	return client, done
}

const tapRequest = `{"vm":"P3","nic":"net0","bridge":"br0","port":"","mac":"52:54:00:00:00:01","model":"virtio-net-pci","queues":2,"mtu":0,"vhost":true,"options":""}`

func TestServe(t *testing.T) {
	h := newUserHost(t)
	asked := 0
	client, done := h.serving(func(s nic.Spec) error { asked++; return nil })
	if err := client.Send([]byte(tapRequest)); err != nil {
		t.Fatal(err)
	}
	answer, queues, err := client.Receive(4096)
	if err != nil || len(queues) != 2 || !strings.Contains(string(answer), `"P3-net0"`) {
		t.Fatalf("%s with %d files, %v", answer, len(queues), err)
	}
	if l, err := h.nl.Link("P3-net0"); err != nil || !strings.Contains(l.Alias, "state=attaching") ||
		!strings.Contains(l.Alias, "vhost=on") {
		t.Errorf("%+v, %v", l, err)
	}
	if err := client.Send([]byte(`{"plugged":true}`)); err != nil {
		t.Fatal(err)
	}
	if answer, _, err = client.Receive(4096); err != nil || strings.Contains(string(answer), "error") {
		t.Errorf("%s, %v", answer, err)
	}
	if err := <-done; err != nil || asked != 2 {
		t.Errorf("%v; asked %d times, want before and after", err, asked)
	}
	if l, err := h.nl.Link("P3-net0"); err != nil || strings.Contains(l.Alias, "state=") || !l.Up {
		t.Errorf("%+v, %v", l, err)
	}
	fdpass.CloseAll(queues)
	h.gone("P3-net0")
}

func TestServeLeavesNothing(t *testing.T) {
	h := newUserHost(t)
	late := errors.New("too late")
	calls := 0
	for _, c := range []struct {
		what, tapRequest string
		allow            func(nic.Spec) error
		want             string // in the answer; empty: the client gives up then
	}{
		{"given up", tapRequest, func(nic.Spec) error { return nil }, ""},
		{"denied", tapRequest, func(nic.Spec) error { return fs.ErrPermission }, "permission denied"},
		{"denied late", tapRequest, func(nic.Spec) error {
			if calls++; calls > 1 {
				return late
			}
			return nil
		}, "too late"},
		{"no such bridge", strings.Replace(tapRequest, "br0", "br9", 1), func(nic.Spec) error { return nil }, "br9"},
		{"nonsense", `{"vm":1}`, nil, "unmarshal"},
		{"two texts", tapRequest + tapRequest, nil, "more than one"},
		{"unknown key", strings.Replace(tapRequest, `"vhost"`, `"whost"`, 1), nil, "whost"},
		{"bad queues", strings.Replace(tapRequest, `"queues":2`, `"queues":-1`, 1), nil, "queues"},
		{"many queues", strings.Replace(tapRequest, `"queues":2`, `"queues":254`, 1), nil, "254"},
		{"bad name", strings.Replace(tapRequest, `"net0"`, `"../x"`, 1), nil, "NIC id"},
		{
			"long hash", strings.Replace(tapRequest, `"options":""`, `"options":"`+strings.Repeat("x", 20)+`"`, 1), nil,
			"hash",
		},
		{"odd hash", strings.Replace(tapRequest, `"options":""`, `"options":"\u009b"`, 1), nil, "hash"},
	} {
		t.Run(c.what, func(t *testing.T) {
			h.TB = t
			client, done := h.serving(c.allow)
			if err := client.Send([]byte(c.tapRequest)); err != nil {
				t.Fatal(err)
			}
			answer, files, err := client.Receive(4096)
			if err != nil || !strings.Contains(string(answer), c.want) {
				t.Errorf("%s, %v, want %q", answer, err, c.want)
			}
			fdpass.CloseAll(files)
			_ = client.Close()
			if err := <-done; (err == nil) != (c.want == "") {
				t.Errorf("it ended with %v", err)
			}
			h.gone("P3-net0")
		})
	}
	h.TB = t
}

func TestLaunchDry(t *testing.T) {
	h := newUserHost(t)
	h.wire()
	var names []string
	h.Run = func(_ context.Context, steps []step.Step) error {
		for _, s := range steps {
			names = append(names, s.Name)
		}
		return nil
	}
	defer func() { h.Run = nil }()
	l, err := h.tryLaunch(h.context(10*time.Second),
		nic.Spec{Target: nic.Target{VM: "P3"}, NIC: "net0", Bridge: "br0", Vhost: nic.VhostOff},
		nic.Spec{
			Target: nic.Target{VM: "P3"}, NIC: "net1", Lower: &nic.Lower{Kind: "macvtap", Device: "eth0"},
			Vhost: nic.VhostOff,
		})
	if err != nil || len(l.NICs) != 2 {
		t.Fatalf("%+v, %v", l, err)
	}
	want := []string{
		"net0 label", "net0 tap", "net0 settings", "net0 port", "net1 label", "net1 macvtap",
		"net1 settings", "net1 queue 0", "net1 up",
	}
	if !slices.Equal(names, want) {
		t.Errorf("steps %q, want %q", names, want)
	}
	h.gone("P3-net0")
}
