package main

import "kernel.org/pub/linux/libs/security/libcap/cap"

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
