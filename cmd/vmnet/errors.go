package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vmnet/bridge/brport"
	"vmnet/internal/network"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

// errUsage is the error for a command line that parses but is inconsistent.
var errUsage = errors.New("wrong usage")

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// usageError matches errUsage with errors.Is, without having its text.
type usageError struct{ error }

func (e usageError) Is(target error) bool { return target == errUsage }
func (e usageError) Unwrap() error        { return e.error }

// exitStatus ends the program without a message: its output has given the reason.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report prints an error and returns the exit status.
func (a *app) report(cmd *cobra.Command, err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errNoCommand) && !a.json:
		cmd.SetOut(a.err)
		_ = cmd.Help()
		return exitUsage
	case errors.Is(err, syscall.EPIPE) && errors.Is(err, errOutput):
		return exitFailure // no reader is left for a message
	case !a.started || errors.Is(err, errUsage) || errors.Is(err, nic.ErrInvalid) ||
		errors.Is(err, brport.ErrInvalid) ||
		errors.Is(err, network.ErrInvalid):
		return a.fail(err, exitUsage, cmd.CommandPath()+" --help")
	}
	return a.fail(withCure(err), exitFailure, "")
}

type kernelCure struct {
	errno syscall.Errno
	cure  string
}

// cures has the cures for errors of the kernel that any request can meet and that no lower layer
// has explained.
var cures = []kernelCure{
	{syscall.EMFILE, "vmnet may open no more files: raise its limit with ulimit -n, or with LimitNOFILE= in its unit"},
	{syscall.ENFILE, "the system may open no more files: raise sysctl fs.file-max"},
	{syscall.ENOMEM, "the kernel has no memory left, or the cgroup has reached its limit"},
	{
		syscall.ENOBUFS,
		"the kernel has no memory left, or the socket has reached its limit: raise sysctl net.core.rmem_max and wmem_max",
	},
	{
		syscall.ENOSPC,
		"a limit of the kernel is reached: for namespaces raise sysctl user.max_net_namespaces and user.max_mnt_namespaces",
	},
	{syscall.EUSERS, "namespaces are nested too deep: run vmnet in an outer one"},
	{syscall.EXFULL, "the bridge has all the ports that the kernel allows, 1023: use another bridge"},
	{
		syscall.EROFS,
		"the file system is mounted read-only, as in many containers: run vmnet outside, or mount it writable",
	},
	{syscall.ENOSYS, "this kernel lacks the system call, or a seccomp filter refuses it, as in many containers"},
	{syscall.EAFNOSUPPORT, "this kernel was built without the socket family"},
	{syscall.EPROTONOSUPPORT, "this kernel was built without the protocol"},
	{syscall.EOPNOTSUPP, "this kernel, or the device's driver, cannot do that"},
	{syscall.EPERM, "needs a capability that this user lacks here: run vmnet as root, CAP_NET_ADMIN included"},
}

// cureOfFullDisk is the cure for ENOSPC from a file.
const cureOfFullDisk = "the file system is full: remove files, or write to another one"

// withCure appends the cure in brackets, unless the error already has one after the errno's text.
func withCure(err error) error {
	text := err.Error()
	for _, c := range cures {
		words := c.errno.Error()
		_, behind, found := strings.Cut(text, words)
		if errors.Is(err, c.errno) && found && !strings.ContainsAny(behind, "(;") {
			return fmt.Errorf("%w (%s)", err, c.cureOf(err))
		}
	}
	return err
}

// cureOf returns the cure for an error with that errno. ENOSPC is that of the kernel's limits and
// of a full file system.
func (c kernelCure) cureOf(err error) string {
	var file *fs.PathError
	if c.errno == syscall.ENOSPC && errors.As(err, &file) && errors.Is(file, c.errno) {
		return cureOfFullDisk
	}
	return c.cure
}

// tellOfHelper adds a cure to the error of an attach that failed for lack of privilege and a
// helper.
func tellOfHelper(m *tapmgr.Manager, err error) error {
	if !m.HasHelper() && errors.Is(err, nic.ErrLink) && errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w; %s", err, cureOfEPERM(os.Geteuid(), inUserNamespace()))
	}
	return err
}

// cureOfEPERM returns the cure for EPERM from the kernel when a NIC's device is made.
func cureOfEPERM(uid int, inUserNamespace bool) string {
	switch {
	case uid == 0 && inUserNamespace:
		return "root of a user namespace may not make device nodes (user_namespaces(7)): use --bridge or --switch here, or make a NIC on a parent device from outside the namespace"
	case uid == 0:
		return "this root lacks capabilities: CAP_NET_ADMIN, and for a NIC on a parent device CAP_SYS_ADMIN and CAP_MKNOD (a container's manager gives them: --cap-add, AmbientCapabilities=)"
	}
	return "run vmnet as root, or install qemu-netup setuid root, which gives users what a policy allows"
}

// inUserNamespace reports whether this process is outside the initial user namespace, the only one
// that maps all ids (user_namespaces(7)).
func inUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(text)), " ") != "0 0 4294967295"
}
