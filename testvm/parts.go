package testvm

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
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

// CopyKernel copies the kernel to dir if other users, such as the one that libvirt runs guests as,
// may not read it where it is. The copy keeps the time of the original.
func (p *Parts) CopyKernel(dir string) error {
	if readableByAll(p.Kernel) {
		return nil
	}
	info, err := os.Stat(p.Kernel)
	if err != nil {
		return err
	}
	image, err := os.ReadFile(p.Kernel)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "kernel-*")
	if err != nil {
		return err
	}
	_, err = f.Write(image)
	path := filepath.Join(dir, filepath.Base(p.Kernel))
	err = errors.Join(err, f.Chmod(0o644), f.Close(), os.Chtimes(f.Name(), time.Time{}, info.ModTime()),
		os.Rename(f.Name(), path))
	p.Kernel = path
	return err
}

// readableByAll reports whether the mode of path, and those of its directories, let everybody read
// it.
func readableByAll(path string) bool {
	path, err := filepath.EvalSymlinks(path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return false
	}
	for bit := fs.FileMode(0o004); ; bit = 0o001 {
		info, err := os.Stat(path)
		if err != nil || info.Mode()&bit == 0 {
			return false
		}
		if path == "/" {
			return true
		}
		path = filepath.Dir(path)
	}
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
