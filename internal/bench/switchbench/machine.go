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

// A load is what the machine's processors have done so far, in CPU seconds.
type load struct {
	at   time.Time
	idle float64
	own  float64 // of the harness, all that it has started, and the kernel's threads for received packets
	peer float64 // of these, the switch's
}

// userHZ is what /proc/stat counts in (USER_HZ: 100 on every architecture that Go knows).
const userHZ = 100

// parseIdle takes the seconds in which processors had nothing to do out of /proc/stat (proc(5)).
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

// kernelThreads are those that the kernel hands received packets to when it has too many.
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

// loadNow reads it. The peer's processes are among ours.
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
	foreign          float64 // share of all processors that something else had, from 0 to 1
}

func (l load) since(start load, cpus int) spent {
	s := spent{wall: l.at.Sub(start.at).Seconds(), peer: l.peer - start.peer}
	all := s.wall * float64(cpus)
	s.busy = all - (l.idle - start.idle)
	s.foreign = max(0, s.busy-(l.own-start.own)) / all
	return s
}

// machine describes this one.
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

// version is the first line that a program says of itself; empty where there is none.
func version(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil && len(out) == 0 {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
