package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"kernel.org/pub/linux/libs/security/libcap/cap"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// helperPath is the program to ask for what we have no right to; empty where we have it, or there is
// none: the first step that needs the right then says so.
func helperPath() string {
	if may, err := cap.GetProc().GetFlag(cap.Effective, cap.NET_ADMIN); err != nil || may {
		return ""
	}
	m, err := machine()
	if err != nil {
		return ""
	}
	path, _ := m.FindHelper()
	return path
}

// tellOfHelper adds to an attach's error what those need who may not change links and have no helper.
func tellOfHelper(m *tapmgr.Manager, err error) error {
	if !m.HasHelper() && errors.Is(err, nic.ErrLink) && errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w; %s", err, cureOfEPERM(os.Geteuid(), inUserNamespace()))
	}
	return err
}

// cureOfEPERM is what helps a user whom the kernel has refused to make a NIC's device.
func cureOfEPERM(uid int, inUserNamespace bool) string {
	switch {
	case uid == 0 && inUserNamespace:
		return "root of a user namespace may make no device nodes (user_namespaces(7)): here a guest can be on a --bridge or a --switch; a NIC on a network card is made from outside of the namespace"
	case uid == 0:
		return "this root lacks capabilities: CAP_NET_ADMIN, and for a NIC on a network card CAP_SYS_ADMIN and CAP_MKNOD (a container's manager gives them: --cap-add, AmbientCapabilities=)"
	}
	return "run vmnet as root, or install qemu-netup setuid root, which gives users what a policy allows"
}

// inUserNamespace reports whether this is another user namespace than the machine's first, which alone maps all ids
// (user_namespaces(7)).
func inUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(text)), " ") != "0 0 4294967295"
}
