package main

import (
	"os"
	"os/exec"
	"path/filepath"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// helperProgram gives those who may not change links themselves what the policy allows them.
const helperProgram = "qemu-netup"

// helperPath is the program to ask; empty where the caller needs none, or there is none: the
// first step that needs a right then tells which.
func helperPath() string {
	if may, err := cap.GetProc().GetFlag(cap.Effective, cap.NET_ADMIN); err != nil || may {
		return ""
	}
	if self, err := os.Executable(); err == nil {
		for _, dir := range []string{".", "../libexec/vmnet"} {
			if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), dir, helperProgram)); err == nil {
				return path
			}
		}
	}
	path, err := exec.LookPath(helperProgram)
	if err != nil {
		return ""
	}
	return path
}
