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

// helperPath returns the path of qemu-netup, which does what this process lacks the privilege for.
// It returns the empty string if this process has CAP_NET_ADMIN, or if there is no helper: the
// first step that needs the privilege then fails.
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
		return "root of a user namespace may not make device nodes (user_namespaces(7)): use --bridge or --switch here, or make a NIC on a network card from outside the namespace"
	case uid == 0:
		return "this root lacks capabilities: CAP_NET_ADMIN, and for a NIC on a network card CAP_SYS_ADMIN and CAP_MKNOD (a container's manager gives them: --cap-add, AmbientCapabilities=)"
	}
	return "run vmnet as root, or install qemu-netup setuid root, which gives users what a policy allows"
}

// inUserNamespace reports whether this process is outside the initial user namespace, the only one
// that maps all ids (user_namespaces(7)).
func inUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(text)), " ") != "0 0 4294967295"
}
