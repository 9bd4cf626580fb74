package launch_test

import (
	"errors"
	"strings"
	"testing"

	"vmnet/internal/vmm/launch"
)

// TestFind: QEMU is found behind whatever executes it, or the command line is refused with the
// reason.
func TestFind(t *testing.T) {
	const qemu = "qemu-system-x86_64 -m 1G -name env"
	target := func(program string) string {
		if program == "myvm" {
			return "/opt/bin/qemu-system-aarch64"
		}
		return program
	}
	for line, want := range map[string]string{ // the program by which it is known, or !error
		qemu:                          "qemu-system-x86_64",
		"/usr/libexec/qemu-kvm -m 1G": "qemu-kvm",
		"kvm":                         "kvm",
		"myvm -m 1G":                  "qemu-system-aarch64",
		"/opt/kata/bin/qemu-vanilla-system-x86_64":    "qemu-system-x86_64",
		"/nix/store/x/.qemu-system-aarch64-wrapped":   "qemu-system-aarch64",
		"vendor-vmm -machine q35 -m 1G -nodefaults":   "qemu",
		"taskset -c 0 " + qemu:                        "qemu-system-x86_64",
		"taskset -ac 0-3 " + qemu:                     "qemu-system-x86_64",
		"taskset 0x1 " + qemu:                         "qemu-system-x86_64",
		"nice -n 5 " + qemu:                           "qemu-system-x86_64",
		"nice -5 " + qemu:                             "qemu-system-x86_64",
		"nice --adjustment=5 " + qemu:                 "qemu-system-x86_64",
		"/usr/bin/nice -n5 ionice -c2 -n 7 " + qemu:   "qemu-system-x86_64",
		"chrt -f 10 " + qemu:                          "qemu-system-x86_64",
		"chrt --rr 10 " + qemu:                        "qemu-system-x86_64",
		"numactl --cpunodebind=0 -m 0 " + qemu:        "qemu-system-x86_64",
		"numactl -C 0 --localalloc " + qemu:           "qemu-system-x86_64",
		"env " + qemu:                                 "qemu-system-x86_64",
		"env -i - A=b -u C X=-M " + qemu:              "!- is not known as QEMU",
		"env - A=b C= " + qemu:                        "qemu-system-x86_64",
		"env -u C A=b " + qemu:                        "qemu-system-x86_64",
		"env -S x " + qemu:                            `!env: the option "-S" is not known here`,
		"setpriv --reuid=1 --clear-groups " + qemu:    "qemu-system-x86_64",
		"setpriv --pdeathsig KILL " + qemu:            "qemu-system-x86_64",
		"systemd-run --scope -p MemoryMax=1G " + qemu: "qemu-system-x86_64",
		"systemd-run --user " + qemu:                  "!start qemu-netup there instead",
		"ip netns exec blue " + qemu:                  "qemu-system-x86_64",
		"ip link " + qemu:                             "!known here as ip netns exec only",
		"unshare -mn --fork " + qemu:                  "qemu-system-x86_64",
		"unshare --mount=/x -r " + qemu:               "qemu-system-x86_64",
		"nsenter -t 1 -n " + qemu:                     "qemu-system-x86_64",
		"nsenter --net=/run/netns/x " + qemu:          "qemu-system-x86_64",
		"chroot --userspec=1:1 /jail " + qemu:         "qemu-system-x86_64",
		"stdbuf -oL " + qemu:                          "qemu-system-x86_64",
		"nohup " + qemu:                               "qemu-system-x86_64",
		"setsid -f " + qemu:                           "qemu-system-x86_64",
		"timeout -k 5 60 " + qemu:                     "qemu-system-x86_64",
		"prlimit --nofile=1024 " + qemu:               "qemu-system-x86_64",
		"prlimit -n1024 " + qemu:                      "qemu-system-x86_64",
		"prlimit --pid 7 " + qemu:                     `!prlimit: the option "--pid" is not known here`,
		"runuser -u nobody -- " + qemu:                "qemu-system-x86_64",
		"strace -ff -o log -e trace=openat " + qemu:   "qemu-system-x86_64",
		"gdb -q -ex run --args " + qemu:               "qemu-system-x86_64",
		"gdb " + qemu:                                 "!gdb has no argument --args",
		"busybox nice -n 5 " + qemu:                   "qemu-system-x86_64",
		"flock -n lock " + qemu:                       "qemu-system-x86_64",
		"taskset -c 0 nice myvm":                      "qemu-system-aarch64",
		"sudo " + qemu:                                "!closes all files that it inherits",
		"sudo -u joe " + qemu + " {vmnet}":            "!closes all files that it inherits",
		"nice sudo " + qemu:                           "!closes all files that it inherits",
		"docker run " + qemu:                          "!start qemu-netup there instead",
		"taskset -c 0":                                "!no program follows taskset",
		"nice":                                        "!no program follows nice",
		"taskset -z 0 " + qemu:                        `!taskset: the option "-z" is not known here`,
		"taskset -z 0 " + qemu + " {vmnet}":           "qemu-system-x86_64",
		"sh -c exec-qemu":                             "!sh runs a text of its own",
		"bash start.sh":                               "!{vmnet}",
		"sh -c exec-$VMNET_ARGS":                      "",
		"sh -c exec sh " + qemu + " {vmnet}":          "qemu-system-x86_64",
		"./start.sh":                                  "!./start.sh is not known as QEMU",
		"nice ./start.sh -m 1G":                       "!./start.sh is not known as QEMU",
		"wrap " + qemu:                                "!wrap is not known as QEMU",
		"wrap " + qemu + " -M q35 -display none":      "!wrap is not known as QEMU",
		"wrap " + qemu + " {vmnet}":                   "qemu-system-x86_64",
		"qemu-img info x":                             "!qemu-img is not known as QEMU",
		"crosvm run --net {vmnet} --name kvm":         "",
		"crosvm run --net tap -m 1G":                  "!crosvm is not known as QEMU",
	} {
		got, err := launch.Find("", strings.Fields(line), target)
		if text, refused := strings.CutPrefix(want, "!"); refused {
			if !errors.Is(err, launch.ErrInvalid) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q, %v; want %q", line, got, err, text)
			}
			continue
		}
		if err != nil || strings.Join(got[:min(1, len(got))], "") != want {
			t.Errorf("%s: %q, %v; want %q", line, got, err, want)
		}
	}
}

// TestFindTold: the caller's word counts, but not that a file gets through a program that closes
// it.
func TestFindTold(t *testing.T) {
	for _, c := range []struct {
		vmm  launch.VMM
		line string
		want string
	}{
		{launch.VMMQEMU, "./start.sh -m 1G", "[qemu -m 1G]"},
		{launch.VMMQEMU, "taskset -c 0 my-emulator -m 1G", "[qemu -m 1G]"},
		{launch.VMMQEMU, "sudo my-emulator", "!closes"},
		{launch.VMMEnv, "./start.sh -m 1G", "[]"},
		{launch.VMMEnv, "bash start.sh", "[]"},
		{launch.VMMEnv, "sudo start.sh", "!closes"},
	} {
		got, err := launch.Find(c.vmm, strings.Fields(c.line), nil)
		text, refused := strings.CutPrefix(c.want, "!")
		if refused && (err == nil || !strings.Contains(err.Error(), text)) ||
			!refused && (err != nil || "["+strings.Join(got, " ")+"]" != c.want) {
			t.Errorf("%s %s: %q, %v; want %s", c.vmm, c.line, got, err, c.want)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add("taskset\x00-c\x000\x00env\x00-\x00A=b\x00qemu-system-x86_64\x00-m")
	f.Add("gdb\x00--args")
	f.Fuzz(func(t *testing.T, line string) {
		argv := strings.Split(line, "\x00")
		if got, err := launch.Find("", argv, nil); err != nil && !errors.Is(err, launch.ErrInvalid) ||
			len(got) > len(argv) {
			t.Errorf("%q: %q, %v", argv, got, err)
		}
	})
}

// TestMayShare: QEMU behind a program that may give it other files or another user shares nothing
// by itself.
func TestMayShare(t *testing.T) {
	for line, want := range map[string]string{ // empty: it may
		"qemu-system-x86_64 -m 1G":                          "",
		"nice -n 5 env A=b taskset -c 0 qemu-system-x86_64": "",
		"timeout 5 strace -f qemu-system-x86_64 {vmnet}":    "",
		"nice chroot / qemu-system-x86_64":                  "QEMU behind chroot",
		"unshare -r nice qemu-system-x86_64":                "QEMU behind unshare",
		"prlimit --fsize=1 qemu-system-x86_64":              "QEMU behind prlimit",
		"runuser -u x qemu-system-x86_64":                   "QEMU behind runuser",
		"systemd-run --scope -p X=y qemu-system-x86_64":     "QEMU behind systemd-run",
		"sh -c qemu-system-x86_64 sh {vmnet}":               "what starts QEMU is not known",
		"qemu-system-x86_64 -mem-path /x":                   "-mem-path makes",
		"/opt/strange -M q35 -device x -nographic":          "",
		"/opt/strange --config VMNET_JSON":                  "what starts QEMU is not known",
	} {
		argv := strings.Fields(line)
		guest, err := launch.Find(launch.VMMAuto, argv, nil)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		err = launch.MayShare(launch.VMMAuto, argv, guest, nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}
