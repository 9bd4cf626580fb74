package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

// confinement returns the beginning of a command line that runs a program with the system calls,
// address families and namespaces that a unit leaves it, as systemd does (systemd.exec(5)).
func confinement(t *testing.T, unit string) []string {
	t.Helper()
	_, err := exec.LookPath("systemd-analyze")
	nstest.Require(t, "systemd-analyze", err == nil, "apt install systemd")
	text, err := os.ReadFile("../../docs/systemd/" + unit)
	if err != nil {
		t.Fatal(err)
	}
	filter := seccompFilter(callNumbers(t, allowedCalls(t, string(text))), string(text))
	path := filepath.Join(t.TempDir(), "filter")
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, filter); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(path); len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"confined", path}
}

// settings returns the values of a unit's setting, in their order.
func settings(unit, name string) (values []string) {
	for _, found := range regexp.MustCompile(`(?m)^`+name+`=(.*)$`).FindAllStringSubmatch(unit, -1) {
		values = append(values, found[1])
	}
	return values
}

// allowedCalls are the names of the system calls that a unit allows: groups are systemd's.
func allowedCalls(t *testing.T, unit string) map[string]bool {
	t.Helper()
	out, err := exec.Command("systemd-analyze", "syscall-filter", "--no-pager").Output()
	if err != nil {
		t.Fatal(err)
	}
	groups, name := map[string][]string{}, ""
	for line := range strings.Lines(string(out)) {
		member := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "@"):
			name = member
		case strings.HasPrefix(line, " ") && !strings.HasPrefix(member, "#"):
			groups[name] = append(groups[name], member)
		}
	}
	allowed := map[string]bool{}
	var set func(item string, to bool)
	set = func(item string, to bool) {
		for _, member := range groups[item] {
			set(member, to)
		}
		allowed[item] = to
	}
	for _, value := range append([]string{"@default"}, settings(unit, "SystemCallFilter")...) {
		items, refused := strings.CutPrefix(value, "~")
		for _, item := range strings.Fields(items) {
			set(item, !refused)
		}
	}
	return allowed
}

// callNumbers are the numbers of those that this machine has.
func callNumbers(t *testing.T, allowed map[string]bool) (numbers []uint32) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatal(err)
	}
	table := "unix/zsysnum_linux_" + runtime.GOARCH + ".go"
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), table))
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range regexp.MustCompile(`SYS_(\w+)\s+= (\d+)`).FindAllStringSubmatch(string(text), -1) {
		if n, err := strconv.ParseUint(found[2], 10, 32); err == nil && allowed[strings.ToLower(found[1])] {
			numbers = append(numbers, uint32(n))
		}
	}
	if len(numbers) < 100 {
		t.Fatalf("the unit allows %d system calls", len(numbers))
	}
	return numbers
}

// The fields of struct seccomp_data (include/uapi/linux/seccomp.h): the call's number, and the low
// half of its arguments on a little-endian machine.
const (
	callNumber = 0
	argument0  = 16
	argument1  = 24
)

// seccompFilter is a program for these calls. One that is not among them fails with EPERM.
func seccompFilter(calls []uint32, unit string) (f []unix.SockFilter) {
	add := func(code uint16, k uint32, yes, no uint8) {
		f = append(f, unix.SockFilter{Code: code, K: k, Jt: yes, Jf: no})
	}
	load := func(offset uint32) { add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0) }
	is := func(n uint32, end uint8) { add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, n, 0, end) }
	end := func(action uint32) { add(unix.BPF_RET|unix.BPF_K, action, 0, 0) }
	refuse := uint32(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))

	families := strings.Fields(strings.Join(settings(unit, "RestrictAddressFamilies"), " "))
	numbers := map[string]uint32{
		"AF_UNIX": unix.AF_UNIX, "AF_NETLINK": unix.AF_NETLINK, "AF_PACKET": unix.AF_PACKET,
		"AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6,
	}
	load(callNumber)
	is(unix.SYS_SOCKET, uint8(2*len(families)+2))
	load(argument0)
	for _, family := range families {
		is(numbers[family], 1)
		end(unix.SECCOMP_RET_ALLOW)
	}
	end(unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT))

	namespaces := uint32(unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP)
	if slices.Contains(settings(unit, "RestrictNamespaces"), "net") {
		namespaces &^= unix.CLONE_NEWNET
	}
	for call, argument := range map[uint32]uint32{
		unix.SYS_UNSHARE: argument0, unix.SYS_CLONE: argument0, unix.SYS_SETNS: argument1,
	} {
		load(callNumber)
		is(call, 3)
		load(argument)
		add(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, namespaces, 0, 1)
		end(refuse)
	}
	load(callNumber)
	for _, call := range calls {
		is(call, 1)
		end(unix.SECCOMP_RET_ALLOW)
	}
	end(refuse)
	return f
}

// confined is the program at that command line's beginning: it applies the filter in a file to
// itself, and becomes the program.
func confined() {
	runtime.LockOSThread()
	text, err := os.ReadFile(os.Args[1])
	filter := make([]unix.SockFilter, len(text)/int(unsafe.Sizeof(unix.SockFilter{})))
	if err == nil {
		err = binary.Read(bytes.NewReader(text), binary.NativeEndian, filter)
	}
	program := ""
	if err == nil {
		program, err = exec.LookPath(os.Args[2])
	}
	if err == nil {
		err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if err == nil {
		whole := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&whole)), 0, 0)
	}
	if err == nil {
		err = syscall.Exec(program, os.Args[2:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "confined:", err)
	os.Exit(1)
}

// TestLiveConfinement: the filters of the units refuse what their programs never do. They permit a
// limit of locked memory, which Linux before 5.11 needs for BPF.
func TestLiveConfinement(t *testing.T) {
	nstest.RequireRoot(t) // for what the filters refuse
	for _, unit := range []string{"vmnet-watch.service", "vmnet-switch@.service"} {
		argv := confinement(t, unit)
		for refused, command := range map[string][]string{
			"":              {"sh", "-c", "ulimit -l 64"},
			"not permitted": {"unshare", "--uts", "true"},
			"permitted":     {"chroot", "/", "true"},
		} {
			argv := append(slices.Clone(argv), command...)
			out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
			if (err != nil) != (refused != "") || !strings.Contains(string(out), refused) {
				t.Errorf("%s: %q: %v\n%s", unit, command, err, out)
			}
		}
	}
}
