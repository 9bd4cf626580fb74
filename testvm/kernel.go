package testvm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// setupCure is what a person does where something that setup.sh brings is missing.
const setupCure = "run 'make setup', or testvm/setup.sh"

// CacheDir is where setup.sh unpacks kernels: $VMNET_CACHE, or vmnet in the
// user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("VMNET_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w (set HOME or VMNET_CACHE)", err)
	}
	return filepath.Join(dir, "vmnet"), nil
}

// Kernel is an unpacked kernel package.
type Kernel struct {
	// Release as uname -r says it.
	Release string
	// Image is the path of the bootable kernel.
	Image string
	// Modules is the folder with the release's modules.
	Modules string
}

// FindKernel finds the kernel that guests boot, as setup.sh unpacked it.
func FindKernel() (Kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return Kernel{}, err
	}
	return FindKernelIn(filepath.Join(cache, "cloud-kernel"))
}

// FindKernelIn finds the kernel in an unpacked package. fs.ErrNotExist is true for
// its error where there is none.
func FindKernelIn(dir string) (Kernel, error) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(images) == 0 {
		return Kernel{}, fmt.Errorf("find a guest kernel: %w: %s/boot/vmlinuz-* (%s)", fs.ErrNotExist, dir, setupCure)
	}
	image := images[len(images)-1]
	release := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
	k := Kernel{Release: release, Image: image, Modules: filepath.Join(dir, "lib", "modules", release)}
	if _, err := os.Stat(k.Modules); err != nil {
		return Kernel{}, fmt.Errorf("find the guest kernel's modules: %w (remove %s, then %s)", err, dir, setupCure)
	}
	return k, nil
}
