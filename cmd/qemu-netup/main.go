// A short-lived program does not need the CPU limit of its cgroup. Go's runtime would open the
// cgroup's files at each start and keep them open: under a low RLIMIT_NOFILE no fd would be left.
// Nor does the runtime need to look for changes of the number of CPUs.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Program qemu-netup is the only program of vmnet with a privilege. It is QEMU's bridge helper by
// itself, which takes no longer than the start of a small program; for everything else it executes
// qemu-netup-full with the same arguments.
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

// The paths of files; a build may set others with the linker. A user who starts this program with a
// privilege cannot choose which files it reads or executes.
var (
	aclPath    = bridgeconf.DefaultPath
	policyPath = policy.DefaultPath
	fullPath   = "/usr/local/libexec/vmnet/qemu-netup-full"
)

const exitFailure = 1

func main() {
	if err := run(os.Args); err != nil {
		console.Say(os.Stderr, "qemu-netup", err.Error()) // QEMU's users see its stderr
		os.Exit(exitFailure)
	}
}

func run(argv []string) error {
	r, helper := asQEMU(argv)
	room := fdroom.Check
	if helper {
		room = fdroom.CheckLimit // Serve closes what the caller has left open
	}
	if err := room(); err != nil {
		return err
	}
	p, err := privilege.Begin() // before anything else
	if err != nil {
		return err
	}
	if helper {
		h, err := bridgehelper.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		if !h.OnOVS(r.Bridge) { // the other program knows its database
			return h.Serve(p, gate.Files{ACL: aclPath, Policy: policyPath}, r)
		}
	}
	// The capabilities that any form of that program needs; each form drops what it does not need.
	return p.HandOver(full(p.Elevated()), argv, cap.NET_ADMIN, cap.SYS_ADMIN, cap.MKNOD,
		cap.SYS_PTRACE, cap.DAC_READ_SEARCH, cap.BPF, cap.PERFMON, cap.NET_RAW, cap.DAC_OVERRIDE)
}

// full returns the path of qemu-netup-full. A source tree and $GOBIN have it beside this program,
// where it is of the same build; but what lies there is trusted only if no privilege is passed on,
// since a hard link puts a program beside another user's files.
func full(elevated bool) string {
	if self, err := os.Executable(); err == nil && !elevated {
		beside := filepath.Join(filepath.Dir(self), "qemu-netup-full")
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside
		}
	}
	return fullPath
}

// asQEMU parses a command line in the form of QEMU and libvirt, and no other: --use-vnet if they
// support a vnet header, and one --br and one --fd with values (net_bridge_run_helper in QEMU's
// net/tap.c). The full program reports errors in other command lines.
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
