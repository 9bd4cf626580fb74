package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A load is the CPU time that the machine's processors have spent so far, in seconds.
type load struct {
	at   time.Time
	idle float64
	own  float64 // of the harness, its children, and the kernel's threads for received packets
	peer float64 // of these, the switch's
}

// userHZ is the number of ticks of /proc/stat per second (USER_HZ: 100 on all of Go's
// architectures).
const userHZ = 100

// parseIdle returns the seconds in which processors were idle, from /proc/stat (proc(5)).
func parseIdle(stat string) (float64, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 6 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %.40q", line)
	}
	var ticks float64
	for _, field := range f[4:6] { // idle, iowait
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += float64(n)
	}
	return ticks / userHZ, nil
}

// kernelThreads are the threads to which the kernel defers received packets under load.
func kernelThreads() (pids []int) {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		name, _ := os.ReadFile("/proc/" + d.Name() + "/comm")
		if strings.HasPrefix(string(name), "ksoftirqd/") || strings.HasPrefix(string(name), "napi/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// loadNow reads the current load. The peer's processes are among ours.
func loadNow(kernel []int, ours, peer []*process) (load, error) {
	l := load{at: time.Now()}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return l, err
	}
	if l.idle, err = parseIdle(string(stat)); err != nil {
		return l, err
	}
	for _, pid := range append([]int{os.Getpid()}, kernel...) {
		d, err := cpuOf(pid)
		if err != nil {
			return l, err
		}
		l.own += d.Seconds()
	}
	for _, p := range ours {
		d, err := p.cpu()
		if err != nil {
			return l, fmt.Errorf("%s: %w: %w", p.name, err, p.alive())
		}
		l.own += d.Seconds()
	}
	for _, p := range peer {
		d, err := p.cpu()
		if err != nil {
			return l, fmt.Errorf("%s: %w: %w", p.name, err, p.alive())
		}
		l.peer += d.Seconds()
	}
	return l, nil
}

// A spent is the difference of two loads, in seconds.
type spent struct {
	wall, busy, peer float64
	foreign          float64 // share of all processors that other programs used, from 0 to 1
}

func (l load) since(start load, cpus int) spent {
	s := spent{wall: l.at.Sub(start.at).Seconds(), peer: l.peer - start.peer}
	all := s.wall * float64(cpus)
	s.busy = all - (l.idle - start.idle)
	s.foreign = max(0, s.busy-(l.own-start.own)) / all
	return s
}

// machine describes this machine.
func machine() []string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	kernel, _, _ := strings.Cut(strings.TrimSpace(string(release)), "-")
	return []string{
		fmt.Sprintf("%d × %s", runtime.NumCPU(), model),
		"Linux " + kernel,
		runtime.Version(),
	}
}

// version returns the first line of a program's version output; empty if it has none.
func version(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil && len(out) == 0 {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
