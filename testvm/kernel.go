package testvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// setupCure is the cure if something that setup.sh installs is missing.
const setupCure = "run 'make setup', or testvm/setup.sh"

// SystemCacheDir is the directory in which setup.sh unpacks kernels for root, and so for all users.
const SystemCacheDir = "/var/cache/vmnet"

// CacheDir returns the directory for a user's own files, such as the kernels that setup.sh unpacks
// without root: $VMNET_CACHE, or vmnet in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("VMNET_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w (set HOME or VMNET_CACHE)", err)
	}
	return filepath.Join(dir, "vmnet"), nil
}

// Kernel is an unpacked kernel package.
type Kernel struct {
	// Release is what uname -r prints.
	Release string
	// Image is the path of the bootable kernel: vmlinux, which setup.sh has unpacked and which QEMU
	// enters by PVH, or else vmlinuz.
	Image string
	// Modules is the directory with the release's modules.
	Modules string
}

// FindKernel finds the kernel that guests boot, as setup.sh unpacked it.
func FindKernel() (Kernel, error) { return FindKernelOf("cloud") }

// FindKernelOf finds the kernel that setup.sh calls kind. It looks only in $VMNET_CACHE if that is
// set, otherwise in the user's cache directory and then in the system's. If there is no such
// kernel, the error matches fs.ErrNotExist.
func FindKernelOf(kind string) (Kernel, error) {
	own, err := CacheDir()
	if err == nil {
		var k Kernel
		k, err = FindKernelIn(filepath.Join(own, kind+"-kernel"))
		if !errors.Is(err, fs.ErrNotExist) || os.Getenv("VMNET_CACHE") != "" {
			return k, err
		}
	}
	if k, found := FindKernelIn(filepath.Join(SystemCacheDir, kind+"-kernel")); found == nil {
		return k, nil
	}
	return Kernel{}, err
}

// FindKernelIn finds the kernel in an unpacked package. If there is none, the error matches
// fs.ErrNotExist.
func FindKernelIn(dir string) (Kernel, error) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(images) == 0 {
		return Kernel{}, fmt.Errorf("find a guest kernel: %w: %s/boot/vmlinuz-* (%s)", fs.ErrNotExist, dir, setupCure)
	}
	image := images[len(images)-1]
	release := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
	k := Kernel{Release: release, Image: image, Modules: filepath.Join(dir, "lib", "modules", release)}
	expanded := filepath.Join(dir, "boot", "vmlinux-"+release)
	if info, err := os.Stat(expanded); err == nil && info.Mode().IsRegular() {
		k.Image = expanded
	}
	if _, err := os.Stat(k.Modules); err != nil {
		return Kernel{}, fmt.Errorf("find the guest kernel's modules: %w (remove %s, then %s)", err, dir, setupCure)
	}
	return k, nil
}
