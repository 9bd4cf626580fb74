// A short program has no use for the CPU limit of its cgroup, whose files Go's runtime would open at
// each start and keep open: under a low RLIMIT_NOFILE no fd would be left.
//
//go:debug containermaxprocs=0

// Program qemu-netup is the only program of ours with a privilege. What QEMU asks its bridge helper
// for it does itself, in as little time as the start of a small program takes; for everything else it
// becomes qemu-netup-full, with the same arguments.
package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/internal/access/bridgeconf"
	"vmnet/internal/access/bridgehelper"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/policy"
	"vmnet/internal/access/privilege"
	"vmnet/internal/cli/console"
	"vmnet/internal/cli/fdroom"
)

// Where the files are; the build may have the linker say otherwise. The user who starts this program
// with a privilege cannot choose what it reads or becomes.
var (
	aclPath    = bridgeconf.DefaultPath
	policyPath = policy.DefaultPath
	fullPath   = "/usr/local/libexec/vmnet/qemu-netup-full"
)

const exitFailure = 1

func main() {
	err := fdroom.Check()
	if err == nil {
		var p *privilege.Process
		if p, err = privilege.Begin(); err == nil { // before anything else
			err = run(p, os.Args)
		}
	}
	if err != nil {
		console.Say(os.Stderr, "qemu-netup", err.Error()) // which QEMU's users see
		os.Exit(exitFailure)
	}
}

func run(p *privilege.Process, argv []string) error {
	if r, ok := asQEMU(argv); ok {
		return bridgehelper.Serve(p, gate.Files{ACL: aclPath, Policy: policyPath}, r)
	}
	// What some form of that program has a use for; see there what each keeps.
	return p.HandOver(full(p.Elevated()), argv, cap.NET_ADMIN, cap.SYS_ADMIN, cap.MKNOD, cap.SYS_PTRACE, cap.DAC_READ_SEARCH)
}

// full returns the path of qemu-netup-full. A source tree and $GOBIN have it beside this program, where
// it is of the same build; but what lies there is trusted only if no privilege is passed on, since a
// hard link puts a program beside another user's files.
func full(elevated bool) string {
	if self, err := os.Executable(); err == nil && !elevated {
		beside := filepath.Join(filepath.Dir(self), "qemu-netup-full")
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside
		}
	}
	return fullPath
}

// asQEMU reads a command line as QEMU and libvirt write it, and no other: --use-vnet if they
// can take a vnet header, and one --br and --fd with values (net_bridge_run_helper of QEMU's net/tap.c).
// What is wrong with another one is for the full program to tell.
func asQEMU(argv []string) (r bridgehelper.Request, ok bool) {
	if slices.Contains([]string{"qemu-ifup", "qemu-ifdown"}, filepath.Base(argv[0])) {
		return r, false
	}
	r.FD = -1
	for _, arg := range argv[1:] {
		name, value, _ := strings.Cut(arg, "=")
		switch {
		case arg == "--use-vnet" && !r.VnetHdr:
			r.VnetHdr = true
		case name == "--br" && value != "" && r.Bridge == "":
			r.Bridge = value
		case name == "--fd" && r.FD < 0:
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || strconv.Itoa(n) != value {
				return r, false
			}
			r.FD = n
		default:
			return r, false
		}
	}
	return r, r.Bridge != "" && r.FD >= 0
}
