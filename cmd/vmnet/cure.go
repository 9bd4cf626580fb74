package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// cures are what helps against refusals of the kernel that can meet any request, and that nobody below has explained, with
// errno(3) as it is.
var cures = []struct {
	errno syscall.Errno
	cure  string
}{
	{syscall.EMFILE, "vmnet may open no more files: raise its limit, ulimit -n or LimitNOFILE= of its service"},
	{syscall.ENFILE, "the machine has no room for more open files: raise sysctl fs.file-max"},
	{syscall.ENOMEM, "the kernel has no memory for it, or the cgroup's limit is reached"},
	{syscall.ENOBUFS, "the kernel has no memory for it, or the socket's limit is reached: sysctl net.core.rmem_max and wmem_max"},
	{syscall.ENOSPC, "a limit of the kernel's is reached: for namespaces sysctl user.max_net_namespaces and user.max_mnt_namespaces"},
	{syscall.EUSERS, "namespaces are nested too deep: run vmnet in an outer one"},
	{syscall.EXFULL, "the bridge has all the ports that the kernel allows, 1023: use another bridge"},
	{syscall.EROFS, "it is mounted read-only, as in many containers: run vmnet outside of it, or have that mounted writable"},
	{syscall.ENOSYS, "this kernel does not have the call, or a seccomp filter refuses it, as in many containers"},
	{syscall.EAFNOSUPPORT, "this kernel was built without the family of sockets"},
	{syscall.EPROTONOSUPPORT, "this kernel was built without the protocol"},
	{syscall.EOPNOTSUPP, "this kernel, or the device's driver, cannot do that"},
	{syscall.EPERM, "needs a capability that this user lacks here: run vmnet as root, CAP_NET_ADMIN included"},
}

// withCure adds what helps, unless the error tells it already: what follows the kernel's words in brackets.
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
