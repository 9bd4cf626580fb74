package procview

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is USER_HZ, in which proc_pid_stat(5) counts CPU time; it is 100 on all architectures
// that Go has.
const clockTick = 10 * time.Millisecond

// VhostTimes returns the CPU time of the vhost threads of those of the VMMs that have any, by pid.
// Since Linux 6.4 they are threads of the VMM, called vhost-PID after it (vhost_worker_create in
// drivers/vhost/vhost.c); before, they were threads of the kernel of that name.
func VhostTimes(pids []int) map[int]time.Duration { return vhostTimes("/proc", pids) }

func vhostTimes(proc string, pids []int) map[int]time.Duration {
	all, missing := map[int]time.Duration{}, map[string]int{}
	for _, pid := range pids {
		if spent, threads := ownVhostTime(proc, pid); threads > 0 {
			all[pid] = spent
		} else {
			missing[vhostName(pid)] = pid
		}
	}
	if len(missing) == 0 {
		return all
	}
	entries, _ := os.ReadDir(proc)
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		t, ok := readThread(filepath.Join(proc, e.Name(), "stat"))
		// Any process can call itself so, but has another parent than the kernel's threads.
		if pid := missing[t.name]; ok && pid != 0 && t.parent == kthreadd {
			all[pid] += t.spent
		}
	}
	return all
}

func vhostName(pid int) string { return fmt.Sprintf("vhost-%d", pid) }

// ownVhostTime returns the time of the vhost threads in a VMM, and their number.
func ownVhostTime(proc string, pid int) (spent time.Duration, threads int) {
	dir := filepath.Join(proc, strconv.Itoa(pid), "task")
	tasks, _ := os.ReadDir(dir)
	for _, e := range tasks[:min(len(tasks), maxFiles)] {
		if t, ok := readThread(filepath.Join(dir, e.Name(), "stat")); ok && t.name == vhostName(pid) {
			spent, threads = spent+t.spent, threads+1
		}
	}
	return spent, threads
}

// kthreadd is the process that is the parent of the kernel's threads.
const kthreadd = "2"

type thread struct {
	name, parent string
	spent        time.Duration
}

// readThread reads a thread's stat (proc_pid_stat(5)).
func readThread(path string) (t thread, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return t, false
	}
	_, rest, found := strings.Cut(string(text), "(")
	end := strings.LastIndex(rest, ") ") // the name may contain one
	if !found || end < 0 {
		return t, false
	}
	const ppid, utime, stime = 1, 11, 12 // fields 4, 14 and 15, counted after the name
	fields := strings.Fields(rest[end+2:])
	if len(fields) <= stime {
		return t, false
	}
	t.name, t.parent = rest[:end], fields[ppid]
	for _, i := range []int{utime, stime} {
		ticks, err := strconv.ParseUint(fields[i], 10, 32)
		if err != nil {
			return t, false
		}
		t.spent += time.Duration(ticks) * clockTick
	}
	return t, true
}
