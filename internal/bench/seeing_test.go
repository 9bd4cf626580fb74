package bench

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// seenGuests and seenLinks are how many there are for BenchmarkSeeing; the guests' taps are among
// the links.
const (
	seenGuests = 500
	seenLinks  = 1000
)

// BenchmarkSeeing measures the verbs that show what there is, on a host with 500 processes that
// look like QEMUs, their taps on one bridge, each with a neighbour, and as many other links. Each
// verb should take less than a second.
func BenchmarkSeeing(b *testing.B) {
	runtime.LockOSThread() // never unlocked: it and what it starts are in the lab's netns
	l := newLab(b)
	var batch strings.Builder
	for i := range seenGuests {
		mac := fmt.Sprintf("52:54:00:00:%02x:%02x", i/256, i%256)
		fmt.Fprintf(&batch, "tuntap add dev t%d mode tap\n"+
			"link set dev t%[1]d alias \"vmnet vm=P%[1]d nic=net0 type=tap source=br0 mac=%[2]s model=virtio-net-pci queues=1\"\nlink set dev t%[1]d master br0 up\n"+
			"neigh add 10.7.%[3]d.%[4]d lladdr %[2]s dev br0\n", i, mac, i/250, i%250+1)
	}
	for i := range (seenLinks - seenGuests) / 2 {
		fmt.Fprintf(&batch, "link add d%d type veth peer name e%[1]d\n", i)
	}
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(batch.String())
	if out, err := ip.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for range seenGuests {
		cmd := exec.Command("sleep", "600")
		cmd.Args[0] = "qemu-system-x86_64"
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	var ways []*Way
	for _, verb := range []string{"list -o wide", "map", "map --html", "metrics", "top -n 1 --interval 100ms"} {
		args := append([]string{l.program}, strings.Fields(verb)...)
		ways = append(ways, &Way{Name: verb, Do: func(int) (time.Duration, error) { return timed(args...) }})
	}
	WarmUp(b, 0, ways...)
	Turns(b, 5, ways...)
	Report(b, ways...)
}
