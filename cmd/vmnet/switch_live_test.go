package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

const nobody = 65534

// running is a switch that a test has started.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	socket string
	said   chan string // lines of its output
}

// runSwitch starts a switch as a program and waits until it is ready. before is a command that runs
// it, such as one that changes its privileges. Its socket is in a directory that any user may use.
func runSwitch(t *testing.T, ns *netns.NS, before []string, args ...string) *running {
	t.Helper()
	dir, err := os.MkdirTemp("", "switch")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return startSwitch(t, ns, filepath.Join(dir, "sw"), before, args...)
}

func startSwitch(t *testing.T, ns *netns.NS, socket string, before []string, args ...string) *running {
	t.Helper()
	argv := append(slices.Clone(before), "vmnet", "switch", "run", socket)
	if ns != nil {
		argv = append(argv, "--netns", ns.Path())
	}
	argv = append(argv, args...)
	r := &running{t: t, cmd: exec.Command(argv[0], argv[1:]...), socket: socket, said: make(chan string, 100)}
	r.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	r.cmd.Stderr = os.Stderr
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.said)
		for s := bufio.NewScanner(out); s.Scan(); {
			r.said <- s.Text()
		}
	}()
	t.Cleanup(r.kill)
	r.says("runs with")
	nstest.Eventually(t, patience, "it listens", func() bool {
		return r.ask(func(context.Context, *control.Client) error { return nil }) == nil
	})
	return r
}

// says waits for a line of output.
func (r *running) says(want string) {
	r.t.Helper()
	late := time.After(patience)
	for {
		select {
		case line, open := <-r.said:
			if strings.Contains(line, want) {
				return
			}
			if !open {
				r.t.Fatalf("it has not said %q", want)
			}
		case <-late:
			r.t.Fatalf("it does not say %q", want)
		}
	}
}

// kill sends SIGKILL, which no program can handle.
func (r *running) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// end asks the switch to exit, and checks that it succeeds.
func (r *running) end() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		r.t.Fatal(err)
	}
	r.says(": ended")
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("it ended with %v", err)
	}
	if _, err := os.Lstat(r.socket); !errors.Is(err, fs.ErrNotExist) {
		r.t.Errorf("its socket: %v", err)
	}
}

func (r *running) ask(f func(context.Context, *control.Client) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := control.Dial(ctx, r.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

func (r *running) ports() map[string]control.Port {
	r.t.Helper()
	all := map[string]control.Port{}
	err := r.ask(func(ctx context.Context, c *control.Client) error {
		ports, err := c.Ports(ctx)
		for _, p := range ports {
			all[p.Name] = p
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// powerless checks that no thread has a capability or can gain one, and that all are in the
// sandbox.
func (r *running) powerless(uid int) {
	r.t.Helper()
	nstest.Eventually(r.t, patience, "the switch is in its sandbox", func() bool {
		var info control.Info
		err := r.ask(func(ctx context.Context, c *control.Client) (err error) {
			info, err = c.Info(ctx)
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
		return slices.Contains(info.Sandbox, "seccomp")
	})
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", r.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		r.t.Fatalf("%v, %v", tasks, err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for _, want := range []string{
			fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", uid), "NoNewPrivs:\t1\n",
			"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
			"CapAmb:\t0000000000000000\n", "Seccomp:\t2\n",
		} {
			if !strings.Contains(string(status), want) {
				r.t.Errorf("%s has no line %q:\n%s", task, want, status)
			}
		}
	}
}

// seat moves a device into a new netns, and adds addresses to it there.
func seat(t *testing.T, from *netns.NS, device, v4 string) *netns.NS {
	t.Helper()
	ns := nstest.New(t)
	link, err := nstest.Handle(t, from).LinkByName(device)
	if err == nil {
		err = nstest.Handle(t, from).LinkSetNsFd(link, int(ns.Handle()))
	}
	if err != nil {
		t.Fatal(err)
	}
	address(t, ns, device, v4)
	return ns
}

func address(t *testing.T, ns *netns.NS, device, v4 string) {
	t.Helper()
	nl := nstest.Handle(t, ns)
	link, err := nl.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(v4 + "/24")
	if err == nil {
		err = nl.AddrAdd(link, addr)
	}
	if err == nil {
		err = nl.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// stream sends verified bytes from one netns to an address in another one.
func stream(t *testing.T, from, to *netns.NS, v4 string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var s *traffic.Server
	if err := to.Do(func() (err error) { s, err = traffic.ServeTCP(v4 + ":0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return from.Do(func() error {
		_, err := traffic.SendTCP(ctx, s.Addr, 5<<20)
		return err
	})
}

func answers(t *testing.T, from *netns.NS, v4 string) bool {
	t.Helper()
	return from.Do(func() error {
		_, err := traffic.SendPing(t.Context(),
			traffic.Ping{Addr: v4, Count: 10, Timeout: 100 * time.Millisecond, UntilFirst: true})
		return err
	}) == nil
}

func awaitAnswer(t *testing.T, from *netns.NS, v4 string) {
	t.Helper()
	nstest.Eventually(t, patience, v4+" answers", func() bool { return answers(t, from, v4) })
}

func isThere(t *testing.T, ns *netns.NS, device string) bool {
	t.Helper()
	_, err := nstest.Handle(t, ns).LinkByName(device)
	return err == nil
}

// awaitGone waits for the kernel, which removes a device some milliseconds after its last holder.
func awaitGone(t *testing.T, ns *netns.NS, device string) {
	t.Helper()
	nstest.Eventually(t, patience, device+" is gone", func() bool { return !isThere(t, ns, device) })
}

// persistent makes a tap as ip tuntap add does.
func persistent(t *testing.T, ns *netns.NS, name string, multi bool) {
	t.Helper()
	tap, err := tun.Create(ns, name, multi)
	if err == nil {
		err = errors.Join(tap.Persist(0), tap.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestLiveSwitchTaps moves new and existing taps, with one queue and with several, to other
// namespaces, and sends traffic between them.
func TestLiveSwitchTaps(t *testing.T) {
	ns := nstest.New(t)
	persistent(t, ns, "single", false)
	persistent(t, ns, "multi", true)
	r := runSwitch(t, ns, nil, "--user", "nobody", "--tap", "made", "--tap", "queues,queues=3,mtu=1400", "--tap",
		"single", "--tap", "multi,queues=2")
	r.powerless(nobody)
	for name, queues := range map[string]int{"made": 1, "queues": 3, "single": 1, "multi": 2} {
		if p := r.ports()[name]; p.Stats == nil || len(p.Stats.Queues) != queues || p.Device != name ||
			p.Kind != control.Tap {
			t.Errorf("%+v", p)
		}
	}
	if link, err := nstest.Handle(t, ns).LinkByName("queues"); err != nil || link.Attrs().MTU != 1400 ||
		link.Attrs().Flags&1 == 0 {
		t.Errorf("%+v, %v", link, err)
	}
	made, queues := seat(t, ns, "made", "10.7.0.1"), seat(t, ns, "queues", "10.7.0.2")
	single, multi := seat(t, ns, "single", "10.7.0.3"), seat(t, ns, "multi", "10.7.0.4")
	for _, pair := range []struct {
		from, to *netns.NS
		v4       string
	}{
		{made, queues, "10.7.0.2"},
		{queues, single, "10.7.0.3"},
		{single, multi, "10.7.0.4"},
		{multi, made, "10.7.0.1"},
	} {
		if err := stream(t, pair.from, pair.to, pair.v4); err != nil {
			t.Errorf("to %s: %v", pair.v4, err)
		}
	}
	holder, _ := r.guests("guest") // which the user nobody may not read
	r.lose(holder, 4)
	r.end()
	awaitGone(t, made, "made")
	awaitGone(t, queues, "queues")
	if !isThere(t, single, "single") || !isThere(t, multi, "multi") {
		t.Error("a persistent tap has gone")
	}
}

// TestLiveSwitchPacket uses a veth as the uplink. Its near end has an address of the host. After
// the switch is killed, another one takes the veth over.
func TestLiveSwitchPacket(t *testing.T) {
	ns, outside := nstest.New(t), nstest.New(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "lan0", PeerNamespace: netlink.NsFd(int(outside.Handle()))}
	if err := nstest.Handle(t, ns).LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	address(t, ns, "up0", "10.7.0.9")
	address(t, outside, "lan0", "10.7.0.2")
	awaitAnswer(t, outside, "10.7.0.9") // otherwise the test is wrong

	r := runSwitch(t, ns, nil, "--user", "nobody", "--tap", "tap0", "--packet", "up0")
	r.powerless(nobody)
	guest := seat(t, ns, "tap0", "10.7.0.1")
	if err := stream(t, guest, outside, "10.7.0.2"); err != nil {
		t.Error(err)
	}
	if answers(t, guest, "10.7.0.9") || answers(t, outside, "10.7.0.9") {
		t.Error("the host's address is reached through the switch")
	}
	if out, err := exec.Command("vmnet", "--netns", ns.Path(), "switch", "run", r.socket+"2", "--packet",
		"up0").CombinedOutput(); err == nil || !strings.Contains(string(out), "another switch has the device") {
		t.Errorf("a second switch: %s, %v", out, err)
	}

	// A killed switch leaves its socket and nothing else.
	r.kill()
	awaitGone(t, guest, "tap0")
	awaitAnswer(t, outside, "10.7.0.9") // the device's frames reach the host again
	if _, err := os.Lstat(r.socket); err != nil {
		t.Errorf("the test is wrong: %v", err)
	}
	if err := r.ask(nil); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("%v", err)
	}
	r = startSwitch(t, ns, r.socket, nil, "--tap", "tap0", "--packet", "up0")
	r.powerless(0)
	guest = seat(t, ns, "tap0", "10.7.0.1")
	if err := stream(t, guest, outside, "10.7.0.2"); err != nil {
		t.Error(err)
	}
	r.end()
}

// forNobody lets every user execute the tested program.
func forNobody(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("vmnet")
	if err != nil {
		t.Fatal(err)
	}
	for path = filepath.Dir(path); len(path) > len(os.TempDir()); path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// guests adds socket ports of those names, held by a process of root, and returns that process and
// the guests' ends.
func (r *running) guests(names ...string) (holder *exec.Cmd, ends []*os.File) {
	r.t.Helper()
	holder = exec.Command("sleep", "1000")
	if err := holder.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	for _, name := range names {
		near, far, err := endpoint.SocketFiles()
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { _ = far.Close() })
		pidfd, err := control.OpenHolder(holder.Process.Pid)
		if err != nil {
			r.t.Fatal(err)
		}
		err = r.ask(func(ctx context.Context, c *control.Client) error {
			return c.AddPort(ctx, control.Port{
				Name: name, Kind: control.Socket, Holder: holder.Process.Pid,
				Label: "guest " + name,
			}, pidfd, near)
		})
		if err = errors.Join(err, near.Close(), pidfd.Close()); err != nil {
			r.t.Fatal(err)
		}
		ends = append(ends, far)
	}
	return holder, ends
}

// lose kills the holder of ports, and waits until that many are left.
func (r *running) lose(holder *exec.Cmd, left int) {
	r.t.Helper()
	if err := holder.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	nstest.Eventually(r.t, patience, "the ports of a process that has ended go", func() bool {
		return len(r.ports()) <= left
	})
}

// TestLiveSwitchWithoutFiles: a switch that may open few files refuses ports, and continues to
// serve clients, including silent ones.
func TestLiveSwitchWithoutFiles(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	r := runSwitch(t, nil, []string{"prlimit", "--nofile=64"})
	var err error
	n := 0
	for ; err == nil && n < 64; n++ {
		near, far, pairErr := endpoint.SocketFiles()
		if pairErr != nil {
			t.Fatal(pairErr)
		}
		err = r.ask(func(ctx context.Context, c *control.Client) error {
			return c.AddPort(ctx, control.Port{Name: fmt.Sprint("p", n), Kind: control.Socket}, near)
		})
		_, _ = near.Close(), far.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "no file descriptors left for more ports") || n < 10 {
		t.Fatalf("%d ports, %v", n, err)
	}
	for range 100 {
		c, err := control.Dial(t.Context(), r.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for name := range r.ports() {
		if err := r.ask(func(ctx context.Context, c *control.Client) error {
			return c.RemovePort(ctx, name)
		}); err != nil {
			t.Fatal(err)
		}
	}
	r.end()
}

// TestLiveSwitchOfNobody: a switch without privilege, with two guests whose ports are added over
// its socket.
func TestLiveSwitchOfNobody(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	forNobody(t)
	r := runSwitch(t, nil, append([]string{"setpriv"}, asNobody...))
	r.powerless(nobody)
	holder, ends := r.guests("a", "b")
	frame := append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5"), make([]byte, 46)...)
	if _, err := ends[0].Write(frame); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2000)
	if n, err := ends[1].Read(got); err != nil || string(got[:n]) != string(frame) {
		t.Errorf("%x, %v", got[:n], err)
	}
	r.lose(holder, 0)
	r.end()
}

// TestLiveSwitchWithTheRightsOfItsUnit runs a switch with the privileges that systemd gives its
// dynamic user. The switch notifies systemd.
func TestLiveSwitchWithTheRightsOfItsUnit(t *testing.T) {
	ns := nstest.New(t)
	forNobody(t)
	unit, err := os.ReadFile("../../docs/systemd/vmnet-switch@.service")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^AmbientCapabilities=(.*)$`).FindSubmatch(unit)
	if found == nil {
		t.Fatal("the unit names no capabilities")
	}
	caps := ""
	for _, name := range strings.Fields(string(found[1])) {
		caps += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	ipIn(t, ns.Path(), "link", "add", "up0", "type", "veth", "peer", "name", "far0")

	told := systemd(t)
	for path := told.LocalAddr().String(); len(path) > len(os.TempDir()); path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", told.LocalAddr().String())
	nstest.OpenTun(t)
	before := append([]string{
		"nsenter", "--net=" + ns.Path(),
		"setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "--no-new-privs",
		"--bounding-set", "-all" + caps, "--inh-caps", "-all" + caps, "--ambient-caps", "-all" + caps,
	}, confinement(t, "vmnet-switch@.service")...)
	r := runSwitch(t, nil, before, "--tap", "tap0,queues=2,mtu=9000", "--packet", "up0")
	r.powerless(12345)
	_ = told.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 500)
	n, err := told.Read(b)
	if want := regexp.MustCompile(`^READY=1\nSTATUS=switch .*/sw: runs with 2 ports, socket `); err != nil ||
		!want.Match(b[:n]) {
		t.Errorf("%q, %v", b[:n], err)
	}
	r.end()
	hear(t, told, "STOPPING=1")
}
