package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// launchArgs gives a guest one NIC and executes what follows.
func launchArgs(argv ...string) []string {
	return append([]string{"--vm", "P3", "--bridge", "br0", "--vhost", "off", "--vmm", "env", "--"}, argv...)
}

func TestLiveHostileArguments(t *testing.T) {
	h := newHost(t)
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"nothing", nil, exitUsage, "no arguments given"},
		{"-- only", []string{"--"}, exitUsage, "nothing follows --"},
		{"no program's name", launchArgs(""), exitFailure, "a program without a name"},
		{"no bridge", []string{"--vm", "P3", "--vmm", "env", "--", "/bin/true"}, exitUsage, "--bridge"},
		{"no guest's name", []string{"--bridge", "br0", "--vmm", "env", "--", "/bin/true"}, exitUsage, "--vm NAME"},
		{
			"a control character",
			[]string{"--vm", "a\x1b[2Jb", "--bridge", "br0", "--vmm", "env", "--", "/bin/true"},
			exitUsage, "want printable UTF-8 text",
		},
		{
			"a line feed",
			[]string{"--vm", "a\nvmnet: b", "--bridge", "br0", "--vmm", "env", "--", "/bin/true"},
			exitUsage, "want printable UTF-8 text",
		},
		{
			"a bridge's name",
			[]string{"--vm", "P3", "--bridge", "../br0", "--vmm", "env", "--", "/bin/true"},
			exitUsage,
			"../br0",
		},
		{
			"a bridge's long name",
			[]string{"--vm", "P3", "--bridge", long, "--vmm", "env", "--", "/bin/true"},
			exitUsage,
			"bridge",
		},
		{
			"a NIC's name",
			[]string{"--vm", "P3", "--nic", "a b", "--bridge", "br0", "--vmm", "env", "--", "/bin/true"},
			exitUsage, "NIC id",
		},
		{
			"a netns", append([]string{"--netns", "/proc/1/ns/net"}, launchArgs("/bin/true")...),
			exitUsage, "for root only",
		},
		{
			"4096 arguments", launchArgs(slices.Repeat([]string{"/bin/true"}, 4097)...), exitUsage,
			"at most 4096 are possible",
		},
		{"4096 options", append(slices.Repeat([]string{"--isolated"}, 4096), launchArgs("/bin/true")...), 0, ""},
		{
			"4096 NICs",
			append(slices.Repeat([]string{"--bridge", "br0", "--next-nic"}, 4096), launchArgs("/bin/true")...),
			exitUsage, "more than 32 NICs",
		},
		{"an argument of 100 kB", launchArgs("/bin/true", long), 0, ""},
		{"no such program", launchArgs("/no/such"), exitFailure, "no such file"},
		{"a directory", launchArgs("/"), exitFailure, "not an executable file"},
		{"a file that only root may read", launchArgs("/etc/shadow"), exitFailure, "permission denied"},
		{"bad queues", append([]string{"--queues", "0"}, launchArgs("/bin/true")...), exitUsage, "queues"},
		{"an unknown flag", append([]string{"--\x1b[31m"}, launchArgs("/bin/true")...), exitUsage, "unknown flag"},
		{
			"two NICs of one name",
			append([]string{"--bridge", "br0", "--next-nic", "--nic", "net0"}, launchArgs("/bin/true")...), exitUsage,
			"net0",
		},
		{"the helper's fd", []string{"--br=br0", "--fd=99"}, exitFailure, "has not handed it over"},
		{"the helper's fd is a file", []string{"--br=br0", "--fd=0"}, exitFailure, "fd 0"},
		{"the service's fd", []string{"--attach", "--fd=99"}, exitFailure, "has not handed it over"},
		{"the service's fd is a file", []string{"--attach", "--fd=1"}, exitFailure, "fd 1"},
		{"a negative fd", []string{"--attach", "--fd=-5"}, exitUsage, "--fd=NUMBER"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := h.in(t)
			r := h.nobodys(c.args...)
			if r.code != c.code || !strings.Contains(r.stderr, c.want) || strings.ContainsAny(r.stderr, "\x1b\x00") ||
				strings.Contains(r.stderr, "panic") || len(r.stderr) > 200_000 {
				t.Errorf("exit status %d, want %d: %.600s", r.code, c.code, r.stderr)
			}
			if n := h.taps(); n != 0 {
				t.Errorf("%d taps are left", n)
			}
		})
	}
	if r := h.nobodys(launchArgs("/bin/sh", "-c", "exit 7")...); r.code != 7 {
		t.Errorf("exit status %d, want PROGRAM's own: %s", r.code, r.stderr)
	}
}

// TestLiveHostileStart has no argv, and no standard files.
func TestLiveHostileStart(t *testing.T) {
	h := newHost(t)
	shell := func(script string, args ...string) result {
		return h.do(h.command("/bin/bash", append([]string{"-c", script, "bash", h.program}, args...)...))
	}
	h.ok(shell(`"$@" 0<&- 2<&-`, launchArgs("/bin/sh", "-c", "readlink /proc/self/fd/0 /proc/self/fd/2")...),
		"/dev/null\n/dev/null\n")
	if r := shell(`"$@" 0<&- 1>&- 2>&-`, launchArgs("/bin/sh", "-c", "exit 5")...); r.code != 5 {
		t.Errorf("without standard files: exit status %d", r.code)
	}
	h.ok(shell(`exec 7<&0 9</dev/null; "$@"`, launchArgs("/bin/sh", "-c", "readlink /proc/self/fd/9")...), "/dev/null")

	cmd := h.command(h.program)
	cmd.Args = []string{""}
	if r := h.do(cmd); r.code != exitUsage || strings.Contains(r.stderr, "panic") {
		t.Errorf("an empty name: exit status %d: %s", r.code, r.stderr)
	}
}

func TestLiveHostileEnvironment(t *testing.T) {
	h := newHost(t)
	evil := h.own("evil")
	h.config("evil/prog", "#!/bin/sh\nid -u; id -ru; grep CapEff /proc/self/status; umask\n")
	if err := os.Chmod(filepath.Join(evil, "prog"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := h.command(h.program, launchArgs("prog")...)
	cmd.Env = []string{"PATH=" + evil + ":/usr/bin:/bin"}
	h.ok(h.do(cmd), "65534\n65534\nCapEff:\t0000000000000000\n")

	cmd = h.command(h.program, launchArgs("/usr/bin/env", "-0")...)
	env := []string{
		"LD_PRELOAD=/no/such.so", "GOFLAGS=-x", "GOGC=17", "PATH=/nowhere", "TMPDIR=/root",
		"IFS=x", "VMNET_JSON=forged",
	}
	cmd.Env = env
	r := h.do(cmd)
	got := strings.Split(r.stdout, "\x00")
	for _, want := range env[:6] {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not passed on: %q, exit status %d, %s", want, got, r.code, r.stderr)
		}
	}
	cmd = h.command(h.program, launchArgs("/bin/true")...)
	cmd.Env = []string{"GODEBUG=asyncpreemptoff=1"}
	h.fails(h.do(cmd), exitFailure, "GODEBUG is set, and a privileged program does not run with it (unset it)")
	if strings.Contains(r.stdout, "forged") || strings.Count(r.stdout, "VMNET_JSON=") != 1 {
		t.Errorf("a forged VMNET_JSON: %q", got)
	}
}

// TestLiveMonitorFolder points --qmp auto to directories that are not safe.
func TestLiveMonitorFolder(t *testing.T) {
	h := newHost(t)
	others, open := h.path("others"), h.own("open")
	for _, dir := range []string{others, h.path("rootsown")} {
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	link := h.own("link")
	if err := os.Symlink("/etc", filepath.Join(link, "vmnet")); err != nil {
		t.Fatal(err)
	}
	mustOwn := func(path string, mode os.FileMode, uid int) {
		if err := os.Mkdir(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	mustOwn(filepath.Join(others, "vmnet"), 0o777, 1)    // somebody else's
	mustOwn(filepath.Join(open, "vmnet"), 0o777, nobody) // of the user nobody, but all may write
	inTmp := fmt.Sprintf("/tmp/vmnet-%d", nobody)
	if of, err := os.Lstat(inTmp); err == nil && of.Sys().(*syscall.Stat_t).Uid != nobody { // another user squats it
		inTmp = "/var" + inTmp
	}
	if _, err := os.Lstat(inTmp); err != nil {
		t.Cleanup(func() { _ = os.Remove(inTmp) })
	}
	for _, c := range []struct {
		run  string
		safe bool
	}{
		{h.path("run"), true},
		{others, false},
		{open, false},
		{link, false},
		{"/root", false},
		{"relative", false},
		{"", false},
	} {
		cmd := h.command(h.program, "--bridge", "br0", "--qmp", "auto", "--vhost", "off", "--vm", "P3", "--", "/bin/sh",
			"-c", "echo $VMNET_ARGS")
		cmd.Env = []string{"XDG_RUNTIME_DIR=" + c.run, "TMPDIR=" + c.run}
		r := h.do(cmd)
		where := "unix:" + inTmp + "/P3.qmp"
		if c.safe {
			where = "unix:" + c.run + "/vmnet/P3.qmp"
		}
		h.ok(r, where)
	}
	sock, err := net.Listen("unix", h.path("run/vmnet/P3.qmp"))
	if err == nil {
		err = os.Chmod(sock.Addr().String(), 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	h.fails(h.nobodys(append([]string{"--qmp", "auto"}, launchArgs("/bin/true")...)...), exitFailure,
		"a guest of that name already listens on "+h.path("run/vmnet/P3.qmp"))
	if entries, err := os.ReadDir(filepath.Join(others, "vmnet")); err != nil || len(entries) != 0 {
		t.Errorf("left in another user's directory: %v, %v", entries, err)
	}
}

// fileCaps is struct vfs_cap_data of linux/capability.h, revision 2: permitted and effective.
func fileCaps(all ...cap.Value) []byte {
	var data []byte
	var permitted uint64
	for _, v := range all {
		permitted |= 1 << v
	}
	for _, word := range []uint32{0x02000000 | 1, uint32(permitted), 0, uint32(permitted >> 32), 0} {
		data = binary.LittleEndian.AppendUint32(data, word)
	}
	return data
}

func TestLiveFileCapabilities(t *testing.T) {
	h := newHost(t).withVMNet()
	h.far(farAddr)
	h.policy("{users: [65534], bridges: [br0], lowers: [eth0]}")
	h.reconfigure(0o755, fileCaps(cap.NET_ADMIN))
	h.ok(h.nobodys(launchArgs("/bin/sh", "-c", "grep Cap /proc/self/status; id -u")...), "CapPrm:\t0000000000000000",
		"CapEff:\t0000000000000000", "65534")
	h.fails(h.nobodys("--vm", "P3", "--macvtap", "eth0", "--vmm", "env", "--", "/bin/true"), exitFailure,
		"macvtap on eth0: needs CAP_SYS_ADMIN and CAP_MKNOD (install qemu-netup setuid root")
	h.plainQEMU("N2")
	h.ok(h.attach("N2", "net0", "--bridge", "br0", "--queues", "2"), "2 queues")
	h.fails(h.attach("N2", "net1", "--bridge", "br1"), exitFailure, "bridge.conf allows it")

	// Another capability than the one that is needed.
	h.reconfigure(0o755, fileCaps(cap.NET_RAW))
	h.fails(h.nobodys(launchArgs("/bin/true")...), exitFailure, "CAP_NET_ADMIN is missing", "setcap cap_net_admin+ep")
}

// TestLiveSignals has PROGRAM as if the caller had started it.
func TestLiveSignals(t *testing.T) {
	h := newHost(t)
	cmd := h.command(h.program, launchArgs("/bin/sh", "-c", "kill -TERM $$")...)
	if r := h.do(cmd); r.code != -1 {
		t.Errorf("exit status %d: PROGRAM's signal does not end it", r.code)
	}
	if _, err := exec.LookPath("nohup"); err == nil {
		r := h.do(h.command("/usr/bin/nohup",
			append([]string{h.program}, launchArgs("/bin/sh", "-c", "grep SigIgn /proc/self/status")...)...))
		// The disposition of signal 32 is inherited: make(1) ignores it.
		if !regexp.MustCompile(`SigIgn:\t00000000[08]0000001`).MatchString(r.stdout) {
			t.Errorf("SIGHUP is not ignored as it was: %+v", r)
		}
	}
}
