package testvm

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"time"
)

// Parts are the files from which a guest boots.
type Parts struct {
	Kernel, Initramfs string // files
	Args              string // the kernel's command line

	sum [sha256.Size]byte // of the initramfs
}

// CopyKernel copies the kernel to dir, where another user, such as the one that libvirt runs guests
// as, may be able to read it.
func (p *Parts) CopyKernel(dir string) error {
	info, err := os.Stat(p.Kernel)
	if err != nil {
		return err
	}
	image, err := os.ReadFile(p.Kernel)
	if err != nil {
		return err
	}
	p.Kernel = filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(p.Kernel, image, 0o644); err != nil {
		return err
	}
	return os.Chtimes(p.Kernel, time.Time{}, info.ModTime())
}

// MakeParts makes a guest's initramfs in dir, for a caller that starts QEMU without Start. That
// QEMU needs a virtio-serial port named agent.PortName; pass the path of its socket to agent.Dial.
func MakeParts(ctx context.Context, c Config, dir string) (Parts, error) {
	c = c.withDefaults()
	kernel := c.Kernel
	if kernel == (Kernel{}) {
		var err error
		if kernel, err = FindKernel(); err != nil {
			return Parts{}, err
		}
	}
	init, err := initProgram(ctx, c.Init)
	if err != nil {
		return Parts{}, err
	}
	archive, err := initramfs(kernel, init, c)
	if err != nil {
		return Parts{}, err
	}
	p := Parts{
		Kernel: kernel.Image, Initramfs: filepath.Join(dir, "initramfs"), Args: kernelArgs(c), sum: archive.sum,
	}
	return p, os.WriteFile(p.Initramfs, archive.bytes, 0o600)
}
