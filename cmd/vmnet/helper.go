package main

import (
	"errors"
	"fmt"
	"syscall"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/tapmgr"
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
	if m.HelperPath == "" && errors.Is(err, tapmgr.ErrLink) && errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w; run vmnet as root, or install qemu-netup setuid root, which gives users what a policy allows", err)
	}
	return err
}
