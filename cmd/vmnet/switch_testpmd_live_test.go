package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
	"vmnet/internal/testpmd"
	"vmnet/internal/testprogram"
	"vmnet/internal/vhostuser/frontend"
)

// A foreign is a testpmd with ports at a switch.
type foreign struct {
	*testpmd.Testpmd
	t *testing.T
}

func startTestpmd(t *testing.T, cfg testpmd.Config) *foreign {
	t.Helper()
	cfg.Dir = t.TempDir()
	p, err := testpmd.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return &foreign{p, t}
}

func (f *foreign) do(commands ...string) {
	f.t.Helper()
	if _, err := f.Do(commands...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *foreign) counters(port int) testpmd.Counters {
	f.t.Helper()
	c, err := f.Counters(port)
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// up waits until the guests behind ports of the switch are ready.
func (r *running) up(names ...string) {
	r.t.Helper()
	for _, name := range names {
		r.becomes(name, vport.StateUp)
	}
}

func (r *running) becomes(name string, want vport.State) {
	r.t.Helper()
	nstest.Eventually(r.t, patience, fmt.Sprintf("port %s is %s", name, want), func() bool {
		return r.ports()[name].Stats.State == want
	})
}

func testMAC(n byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, n} }

// jumbo lets a testpmd send and receive frames of several buffers.
var jumbo = []string{"--max-pkt-len=9018", "--enable-scatter", "--tx-offloads=0x8000"}

// foreignGuest starts a testpmd with one port, which is named after it, at a switch that listens.
func foreignGuest(t *testing.T, sw *running, dir, name string, n byte, single bool) *foreign {
	t.Helper()
	g := testpmd.Guest{Path: filepath.Join(dir, name), MAC: testMAC(n), Ring: 1024, Single: single}
	cfg := testpmd.Config{
		Devices: []string{g.Device(0)}, Mbufs: 8192, Args: []string{"--eth-peer=0," + testMAC(3-n).String()},
	}
	if !single {
		cfg.Args = append(cfg.Args, jumbo...)
	}
	f := startTestpmd(t, cfg)
	f.do()
	sw.up(name)
	return f
}

// exchange has a testpmd send frames of a size to another one, which must get all. They fit into
// its ring, of which it uses 512 descriptors, even if it does not run meanwhile.
func exchange(t *testing.T, from, to *foreign, size string, bytes uint64) {
	t.Helper()
	const frames = 64 // two bursts
	before := to.counters(0)
	to.do("set fwd rxonly", "start")
	from.do("set fwd rxonly", "set txpkts "+size, "start tx_first 2")
	want := testpmd.Counters{RxFrames: before.RxFrames + frames, RxBytes: before.RxBytes + frames*bytes}
	var got testpmd.Counters
	nstest.Eventually(t, patience, "frames of "+size+" bytes arrive", func() bool {
		got = to.counters(0)
		return got.RxFrames >= want.RxFrames
	})
	if got.RxFrames != want.RxFrames || got.RxBytes != want.RxBytes {
		t.Errorf("frames of %d bytes arrive as %+v after %+v", bytes, got, before)
	}
	from.do("stop")
	to.do("stop")
}

// A reflected is the driver of a guest in this process, whose frames a testpmd sends back.
type reflected struct {
	t *testing.T
	*frontend.Frontend
}

func (sw *running) driver(path string) reflected {
	sw.t.Helper()
	conn, err := frontend.Connect(path)
	if err != nil {
		sw.t.Fatal(err)
	}
	f, err := frontend.New(conn, frontend.Config{})
	if err != nil {
		sw.t.Fatal(err)
	}
	sw.t.Cleanup(func() { _ = f.Close() })
	sw.up(filepath.Base(path))
	return reflected{sw.t, f}
}

// by demands that frames of random content come back from the address as they were. Others are
// those between the testpmds that were flooded.
func (r reflected) by(mac net.HardwareAddr, sizes ...int) {
	r.t.Helper()
	for _, size := range sizes {
		content := make([]byte, size-14)
		_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(content)
		frame := func(to, from net.HardwareAddr) []byte {
			b := append(make([]byte, frontend.Header), to...)
			return append(append(append(b, from...), 0x88, 0xb5), content...)
		}
		want := frame(testMAC(9), mac)[frontend.Header:]
		var got []byte
		back := func() (ok bool) {
			for ok = true; ok && (got == nil || !bytes.Equal(got[frontend.Header:], want)); {
				got, ok = r.Pair[0].Await(time.Second)
			}
			return ok
		}
		for end := time.Now().Add(patience); ; { // a ring that others have filled loses it
			if r.Pair[0].Send(frame(mac, testMAC(9))) != 1 {
				r.t.Fatal("the driver's ring is full")
			}
			if back() {
				break
			}
			if time.Now().After(end) {
				r.t.Errorf("a frame of %d bytes does not come back", size)
				break
			}
		}
	}
}

// TestLiveTestpmd has DPDK's testpmd as the guests of two ports. They exchange frames, one is
// killed and comes back, and one loses its memory, which ends that port's session only.
func TestLiveTestpmd(t *testing.T) {
	testpmd.Require(t)
	dir := t.TempDir()
	var ports []string
	for _, name := range []string{"a", "b", "c"} {
		ports = append(ports, "--vhost-user", filepath.Join(dir, name)+",mtu=9000")
	}
	sw := runSwitch(t, nil, nil, ports...)
	c := sw.driver(filepath.Join(dir, "c"))
	a, b := foreignGuest(t, sw, dir, "a", 1, false), foreignGuest(t, sw, dir, "b", 2, false)
	exchange(t, a, b, "64", 64)
	exchange(t, b, a, "1500", 1500)
	exchange(t, a, b, "1800,1800,1800,1800,1800", 9000)
	a.do("set fwd macswap", "start")
	c.by(testMAC(1), 60, 1514, 9000)

	b.Kill()
	sw.becomes("b", vport.StateDown)
	b = foreignGuest(t, sw, dir, "b", 2, true)
	a.do("stop")
	exchange(t, a, b, "64", 64)
	exchange(t, b, a, "1500", 1500)
	b.do("set fwd macswap", "start")
	c.by(testMAC(2), 60, 1514)

	memory, err := a.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	a.do("set txpkts 64", "set fwd txonly", "start")
	if err := memory.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if state, err := a.Wait(); err == nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGBUS {
		t.Errorf("a testpmd without memory ends with %v", state)
	}
	sw.becomes("a", vport.StateDown)
	c.by(testMAC(2), 60, 1514)
	sw.end()
}

// TestLivePoll has a switch that polls. It says so, and uses no CPU once no frames come.
func TestLivePoll(t *testing.T) {
	cpus, err := vswitch.UsableCPUs()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sw := runSwitch(t, nil, nil, "--poll", "1s", "--poll-cpus", numbersText(cpus),
		"--vhost-user", filepath.Join(dir, "a"), "--vhost-user", filepath.Join(dir, "b"))
	a, b := sw.driver(filepath.Join(dir, "a")), sw.driver(filepath.Join(dir, "b"))
	err = sw.ask(func(ctx context.Context, c *control.Client) error {
		info, err := c.Info(ctx)
		if info.Poll != 1e6 || !slices.Equal(info.PollCPUs, cpus) {
			t.Errorf("it says %+v", info)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	shown := testprogram.Run(t, "", nil, "vmnet", "switch", "show", sw.socket)
	if !regexp.MustCompile(`(?m)^  polls: +1s on CPUs? ` + numbersText(cpus) + `$`).MatchString(shown) {
		t.Errorf("show says %s", shown)
	}
	frame := append(bytes.Repeat([]byte{0xff}, frontend.Header+6), append(testMAC(1), make([]byte, 48)...)...)
	clear(frame[:frontend.Header])
	for n := range 3 {
		a.Pair[0].Send(frame)
		if _, ok := b.Pair[0].Await(patience); !ok {
			t.Fatalf("frame %d does not come", n)
		}
		a.Pair[0].Mute = true // the switch must find the next ones by itself
	}
	used, since := sw.cpu(), time.Now()
	nstest.Eventually(t, patience, "the switch polls", func() bool { return sw.cpu() > used+20*time.Millisecond })
	nstest.Eventually(t, patience, "it polls no more", func() bool {
		if time.Since(since) < 300*time.Millisecond {
			return false
		}
		was := used
		used, since = sw.cpu(), time.Now()
		return used < was+30*time.Millisecond
	})
	sw.end()
}

// cpu returns the CPU time that the switch has used.
func (r *running) cpu() time.Duration {
	r.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var ticks int // of 10 ms: utime and stime (proc(5))
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			r.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// TestLiveTestpmdReconnects kills the switch while frames go round between two ports of a testpmd,
// and starts it again: the rings have kept all frames. One that was on its way may come twice.
func TestLiveTestpmdReconnects(t *testing.T) {
	testpmd.Require(t)
	dir := t.TempDir()
	var ports, devices []string
	for n, name := range []string{"a", "b"} {
		path := filepath.Join(dir, name)
		ports = append(ports, "--vhost-user", path+",client")
		devices = append(devices, testpmd.Guest{Path: path, Listens: true, MAC: testMAC(byte(n + 1))}.Device(n))
	}
	sw := runSwitch(t, nil, nil, ports...)
	p := startTestpmd(t, testpmd.Config{Devices: devices, Args: []string{
		"--eth-peer=0," + testMAC(2).String(), "--eth-peer=1," + testMAC(1).String(),
	}})
	p.do()
	sw.up("a", "b")
	p.do("start tx_first 4")
	for range 3 {
		moving(t, p)
		sw.kill()
		sw = startSwitch(t, nil, sw.socket, nil, ports...)
		sw.up("a", "b")
	}
	moving(t, p)
	p.do("stop", "set fwd rxonly", "start")
	const batch = 64 // of a switch that is killed
	var sent, got uint64
	nstest.Eventually(t, patience, "all frames arrive", func() bool {
		sent, got = 0, 0
		for port := range 2 {
			c := p.counters(port)
			sent, got = sent+c.TxFrames, got+c.RxFrames
		}
		return got >= sent
	})
	if got > sent+3*2*batch {
		t.Errorf("%d frames arrive of %d", got, sent)
	}
	p.do("stop")
	sw.end()
}

// moving waits until frames pass in both directions.
func moving(t *testing.T, p *foreign) {
	t.Helper()
	for port := range 2 {
		was := p.counters(port).RxFrames
		nstest.Eventually(t, patience, "frames pass", func() bool { return p.counters(port).RxFrames > was+1000 })
	}
}
