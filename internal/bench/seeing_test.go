package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/tun"
)

// seenGuests and seenLinks are how many there are for BenchmarkSeeing; the guests' taps are among
// the links.
const (
	seenGuests = 500
	seenLinks  = 1000
)

// topReadings are how many readings of top the processor time is a mean of, and topInterval is
// the time between two by default.
const (
	topReadings = 10
	topInterval = 2 * time.Second
)

// BenchmarkSeeing measures the verbs that show what there is, on a host with 500 processes that
// look like QEMUs and hold their taps, which are on one bridge, each with a neighbour, and as many
// other links. Each verb should take less than a second, and top less than 3 % of a processor.
func BenchmarkSeeing(b *testing.B) {
	runtime.LockOSThread() // never unlocked: it and what it starts are in the lab's netns
	l := newLab(b)
	l.manyGuests()
	var ways []*Way
	spent := map[string]time.Duration{}
	for _, verb := range []string{
		"list -o wide", "why P0", "why P0 --to P1", "map", "map --html", "metrics", "why-busy br0",
	} {
		args := append([]string{l.program}, strings.Fields(verb)...)
		ways = append(ways, &Way{Name: verb, Do: func(int) (took time.Duration, err error) {
			took, spent[verb], err = seen(args...)
			return took, err
		}})
	}
	WarmUp(b, 0, ways...)
	Turns(b, 5, ways...)
	Report(b, ways...)
	for _, w := range ways {
		b.Logf("%s: %.0f ms of processor time", w.Name, ms(spent[w.Name]))
	}
	few, err := topCPU(l, 1)
	if err != nil {
		b.Fatal(err)
	}
	many, err := topCPU(l, 1+topReadings)
	if err != nil {
		b.Fatal(err)
	}
	share := 100 * float64(many-few) / topReadings / float64(topInterval)
	b.ReportMetric(share, "top-%-of-a-cpu")
	b.Logf("top: %.1f ms of processor time for each reading, which is %.2f %% at its interval of %v",
		ms(many-few)/topReadings, share, topInterval)
}

// topCPU is the processor time of top for n readings after its first one.
func topCPU(l *lab, n int) (time.Duration, error) {
	_, cpu, err := seen(l.program, "top", "-n", strconv.Itoa(n), "--interval", "100ms")
	return cpu, err
}

// seen runs a verb, whose exit status says what it has found, and returns its times.
func seen(args ...string) (took, cpu time.Duration, err error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	err = cmd.Run()
	took = time.Since(start)
	if exit := new(exec.ExitError); errors.As(err, &exit) && stderr.Len() == 0 {
		err = nil // "something stops the frame"
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%q: %w: %s", args, err, &stderr)
	}
	return took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// manyGuests makes the guests and the other links.
func (l *lab) manyGuests() {
	l.Helper()
	var batch strings.Builder
	for i := range seenGuests {
		l.holder(fmt.Sprintf("t%d", i))
		mac := fmt.Sprintf("52:54:00:00:%02x:%02x", i/256, i%256)
		fmt.Fprintf(&batch, "link set dev t%d alias \"vmnet vm=P%[1]d nic=net0 type=tap source=br0 mac=%[2]s "+
			"model=virtio-net-pci queues=1\"\nlink set dev t%[1]d master br0 up\n"+
			"neigh add 10.7.%[3]d.%[4]d lladdr %[2]s dev br0\n", i, mac, i/250, i%250+1)
	}
	for i := range (seenLinks - seenGuests) / 2 {
		fmt.Fprintf(&batch, "link add d%d type veth peer name e%[1]d\n", i)
	}
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(batch.String())
	if out, err := ip.CombinedOutput(); err != nil {
		l.Fatalf("%v: %s", err, out)
	}
}

// holder starts a process that looks like a QEMU and holds a new tap.
func (l *lab) holder(name string) {
	l.Helper()
	tap, err := tun.Create(l.ns, name, false)
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.Command("sleep", "600")
	cmd.Args[0] = "qemu-system-x86_64"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.ExtraFiles = append([]*os.File{}, tap.Queues()...)
	if err := errors.Join(cmd.Start(), tap.Close()); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}
