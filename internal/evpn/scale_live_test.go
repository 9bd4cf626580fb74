package evpn

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
)

// A load is how much three hosts have: each of the first two has guests with perHost addresses in
// each segment; the last one reflects routes, and has the segments without guests.
type load struct{ segments, perHost int }

func (l load) macs() int { return 2 * l.segments * l.perHost }

// figures are what a load takes.
type figures struct {
	segments, macs, forget, restart time.Duration // until each host knows it

	zebra, bgpd, reflector int // memory in KiB: of a host with guests, and bgpd of the reflector

	watch, doctor, show int           // memory in KiB
	doctorTook          time.Duration // for all segments
}

// patient bounds a wait of the whole load.
const patient = 2 * time.Minute

// crowd is one host's guests: a tap in each segment, from which several addresses send.
type crowd struct {
	h    *host
	load load
	taps []*tun.Tap
}

func (h *host) crowd(l load) *crowd {
	h.t.Helper()
	c := &crowd{h: h, load: l}
	for i := range l.segments {
		tap := h.tap(segment+i, fmt.Sprintf("tap%d", i))
		if err := syscall.SetNonblock(int(tap.Queues()[0].Fd()), true); err != nil {
			h.t.Fatal(err)
		}
		c.taps = append(c.taps, tap)
	}
	return c
}

// speak has each address send one broadcast.
func (c *crowd) speak() {
	c.h.t.Helper()
	for i, tap := range c.taps {
		for n := range c.load.perHost {
			from := net.HardwareAddr{0x52, 0x54, c.h.addr.As4()[3], byte(i >> 8), byte(i), byte(n)}
			write(c.h.t, tap.Queues()[0], net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from, 0)
		}
	}
}

func (c *crowd) leave() {
	for _, tap := range c.taps {
		tap.Close()
	}
}

// settled waits until each host has that many addresses and other hosts in each segment, and
// returns how long that took. What a host and a segment has once, it keeps.
func (f *fabric) settled(l load, what string, began time.Time, macs []int, others int) time.Duration {
	f.t.Helper()
	for i, h := range f.hosts {
		for vni := segment; vni < segment+l.segments; vni++ {
			nstest.Eventually(f.t, patient, fmt.Sprintf("%s: %s, VNI %d", what, h.name, vni), func() bool {
				known, floods := 0, 0
				for _, e := range h.remote(vni) {
					if e.IsFlood() {
						floods++
					} else {
						known++
					}
				}
				return known == macs[i] && floods == others
			})
		}
	}
	return time.Since(began)
}

// measure puts a load on three hosts, and checks what vmnet's programs say of it.
func measure(t testing.TB, l load) (got figures) {
	t.Helper()
	f := layFabric(t, 3, l.segments)
	p := newPrograms(t, f.hosts[0])
	watch := p.watch()
	began := time.Now()
	for _, h := range f.hosts {
		h.start()
	}
	got.segments = f.settled(l, "segments", began, []int{0, 0, 0}, 2)

	a, b := f.hosts[0].crowd(l), f.hosts[1].crowd(l)
	began = time.Now()
	a.speak()
	b.speak()
	all := []int{l.perHost, l.perHost, 2 * l.perHost}
	got.macs = f.settled(l, "addresses", began, all, 2)
	got.zebra, got.bgpd = f.hosts[0].memory(t, 0), f.hosts[0].memory(t, 1)
	got.reflector = f.hosts[2].memory(t, 1)
	p.says(l, &got)

	f.hosts[0].kill()
	began = time.Now()
	f.hosts[0].start()
	got.restart = f.settled(l, "after a restart of FRR", began, all, 2)

	began = time.Now()
	b.leave()
	got.forget = f.settled(l, "guests that have gone", began, []int{0, l.perHost, l.perHost}, 2)
	got.watch = p.end(watch)
	return got
}

// memory returns the resident memory of a daemon in KiB.
func (h *host) memory(t testing.TB, daemon int) int {
	t.Helper()
	n := status(h.daemons[daemon].Process.Pid, "VmRSS")
	if n == 0 {
		t.Errorf("daemon %d of %s has ended", daemon, h.name)
	}
	return n
}

// status returns a value of /proc/PID/status in KiB; 0 if the process has ended.
func status(pid int, key string) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	found := regexp.MustCompile(`(?m)^` + key + `:\s+(\d+) kB$`).FindSubmatch(text)
	if found == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(found[1]))
	return n
}

// programs are vmnet's, for a host whose namespace has its name in ip-netns(8): by that they find
// its FRR.
type programs struct {
	t    testing.TB
	h    *host
	path string
}

func newPrograms(t testing.TB, h *host) *programs {
	t.Helper()
	p := &programs{t, h, filepath.Join(t.TempDir(), "vmnet")}
	testprogram.Install(t, p.path, testprogram.Build(t, "vmnet/cmd/vmnet"))
	at := filepath.Join("/run/netns", h.name)
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(at)
		_ = os.Remove(filepath.Dir(at))
	})
	testprogram.Run(t, "/", nil, "mount", "--bind", h.ns.Path(), at)
	t.Cleanup(func() { testprogram.Run(t, "/", nil, "umount", at) })
	return p
}

// watch starts vmnet watch, and returns when it is ready.
func (p *programs) watch() *exec.Cmd {
	p.t.Helper()
	cmd := testprogram.Command("/", nil, p.path, "--netns", p.h.name, "watch", "--no-libvirt")
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "msg=ready") {
			go func() { // until it ends
				for lines.Scan() {
				}
			}()
			return cmd
		}
	}
	p.t.Fatal("watch has ended")
	return nil
}

// end ends watch, and returns the most memory that it had.
func (p *programs) end(watch *exec.Cmd) int {
	p.t.Helper()
	most := status(watch.Process.Pid, "VmHWM")
	if err := watch.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Error(err)
	}
	if err := watch.Wait(); err != nil {
		p.t.Error(err)
	}
	return most
}

// run returns what a verb prints, and its most memory in KiB, as far as that was seen: the rusage
// of a child has the memory of its parent, too.
func (p *programs) run(args ...string) (out string, memory int) {
	p.t.Helper()
	cmd := testprogram.Command("/", nil, append([]string{p.path, "--netns", p.h.name}, args...)...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			memory = max(memory, status(cmd.Process.Pid, "VmHWM"))
		case err := <-ended:
			if err != nil && cmd.ProcessState.ExitCode() != 1 { // doctor finds other things wrong here
				p.t.Fatalf("%q: %v", args, err)
			}
			return stdout.String(), memory
		}
	}
}

// says checks what doctor and show say of the load.
func (p *programs) says(l load, got *figures) {
	p.t.Helper()
	began := time.Now()
	text, memory := p.run("doctor")
	got.doctor, got.doctorTook = memory, time.Since(began)
	for vni := segment; vni < segment+l.segments; vni++ {
		want := fmt.Sprintf("VNI %d on %s: FRR announces the segment, %d MACs, 2 remote hosts, "+
			"1 of 1 neighbors connected", vni, bridgeOf(vni), 2*l.perHost)
		if !strings.Contains(text, want) {
			p.t.Fatalf("doctor does not say %q:\n%s", want, text)
		}
	}
	text, got.show = p.run("bridge", "show", bridgeOf(segment), "-o", "json")
	var shown struct {
		VXLAN struct {
			VNI     int      `json:"vni"`
			Static  bool     `json:"static"`
			Remotes []string `json:"remotes"`
			MACs    int      `json:"remote_macs"`
		} `json:"vxlan"`
		EVPN Status `json:"evpn"`
	}
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		p.t.Fatal(err)
	}
	if v := shown.VXLAN; v.VNI != segment || v.Static || len(v.Remotes) != 2 || v.MACs != l.perHost ||
		!shown.EVPN.Known || shown.EVPN.MACs != 2*l.perHost || len(shown.EVPN.Remotes) != 2 || shown.EVPN.Up != 1 {
		p.t.Errorf("show: %+v", shown)
	}
}

// TestLiveScale is BenchmarkScale in small: what vmnet says of ten segments, and that neither a
// restart of FRR nor the end of guests leaves anything behind.
func TestLiveScale(t *testing.T) {
	t.Logf("%+v", measure(t, load{segments: 10, perHost: 5}))
}

// BenchmarkScale has three hosts with 100 segments and 1,000 addresses: the figures of
// docs/scale.md.
func BenchmarkScale(b *testing.B) {
	l := load{segments: 100, perHost: 5}
	for range b.N {
		got := measure(b, l)
		b.ReportMetric(0, "ns/op")
		for name, took := range map[string]time.Duration{
			"segments-s": got.segments, "addresses-s": got.macs, "restart-s": got.restart, "forgotten-s": got.forget,
			"doctor-s": got.doctorTook,
		} {
			b.ReportMetric(took.Seconds(), name)
		}
		for name, kib := range map[string]int{
			"zebra-MiB": got.zebra, "bgpd-MiB": got.bgpd, "reflector-bgpd-MiB": got.reflector,
			"watch-MiB": got.watch, "doctor-MiB": got.doctor, "show-MiB": got.show,
		} {
			b.ReportMetric(float64(kib)/1024, name)
		}
	}
	b.Logf("%d segments, %d addresses", l.segments, l.macs())
}
