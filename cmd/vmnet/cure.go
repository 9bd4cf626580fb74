package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// cures has the cures for errors of the kernel that any request can meet and that no lower layer
// has explained.
var cures = []struct {
	errno syscall.Errno
	cure  string
}{
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

// withCure appends the cure in brackets, unless the error already has one after the errno's text.
func withCure(err error) error {
	text := err.Error()
	for _, c := range cures {
		words := c.errno.Error()
		_, behind, found := strings.Cut(text, words)
		if errors.Is(err, c.errno) && found && !strings.ContainsAny(behind, "(;") {
			return fmt.Errorf("%w (%s)", err, c.cure)
		}
	}
	return err
}
