package testvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"vmnet/internal/filelock"
	"vmnet/testvm/agent"
)

// A guest that has booted waits for requests in the same state each time. Booting takes an emulated
// processor seconds, and minutes within a lab host. So the first guest of its kind is booted, its
// state is written to a file by a migration, and guests like it begin there: they are warm.

// warmDir holds the states in the cache directory.
const warmDir = "booted"

// warmKept is how many states stay in the cache directory. Each has about 90 MiB.
const warmKept = 16

// canBeWarm reports whether nothing but what warmKey knows determines the guest's state. NICs do
// not: to QEMU a device that a state does not know has just been reset, and to the guest it is new.
func (c Config) canBeWarm() bool {
	return !c.Cold && !c.NoWait && !c.Terminal && c.Root == "" && c.Emulator != "" && c.Accel == "tcg" &&
		len(c.ExtraArgs) == 0
}

// warmKey names the state of a guest that boots from parts.
func (c Config) warmKey(parts Parts) (string, error) {
	program, err := exec.LookPath(c.Emulator)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, path := range []string{program, parts.Kernel} { // Parts.CopyKernel keeps the time
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%d %d\n", info.Size(), info.ModTime().UnixNano())
	}
	fmt.Fprintf(h, "%x %v %v %v %v %q %q\n", parts.sum, c.SparePorts, c.MemoryMiB, c.CPUs, c.Icount, c.Machine,
		kernelArgs(c.twin()))
	return fmt.Sprintf("%x", h.Sum(nil)[:16]), nil
}

// twin describes the guest that is booted in place of those like c. That it was stopped when its
// state was written is not part of the state, so that those begin to run.
func (c Config) twin() Config {
	return Config{
		Name: "booted", Machine: c.Machine, SparePorts: c.SparePorts, MemoryMiB: c.MemoryMiB, CPUs: c.CPUs,
		KernelArgs: c.KernelArgs, Modules: c.Modules, Kernel: c.Kernel, Init: c.Init, QEMU: c.Emulator, Accel: c.Accel,
		Icount: c.Icount, BootTimeout: c.BootTimeout, Logf: c.Logf, Cold: true,
		ExtraArgs: []string{"-global", "migration.store-global-state=off"},
	}.withDefaults()
}

// openState opens the state of a guest that boots from parts. If there is none yet, one process
// makes it while others wait. The caller closes the file.
func (c Config) openState(ctx context.Context, parts Parts) (*os.File, error) {
	key, err := c.warmKey(parts)
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, warmDir)
	path := filepath.Join(dir, key)
	if f, err := os.Open(path); err == nil {
		now := time.Now()
		_ = os.Chtimes(path, now, now) // it is in use: see prune
		return f, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := filelock.Take(ctx, path+".lock", "another process boots such a guest")
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		prune(dir)
		f, err = c.twin().writeState(ctx, dir, key)
	}
	return f, err
}

// writeState boots a guest, writes its state to dir/key and opens that.
func (c Config) writeState(ctx context.Context, dir, key string) (*os.File, error) {
	vm, err := Start(ctx, c)
	if err != nil {
		return nil, err
	}
	defer vm.Stop()
	if err := vm.Guest.Close(); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.BootTimeout)
	defer cancel()
	if err = vm.migrate(ctx, f); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, key))
	}
	if err != nil {
		err = fmt.Errorf("write the state of a guest that has booted: %w", err)
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}

// prune removes the states that have not been used for longest, and what cut-off processes have
// left.
func prune(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	type file struct {
		name string
		used time.Time
	}
	var states []file
	for _, e := range entries {
		info, err := e.Info()
		switch name := e.Name(); {
		case err != nil:
		case filepath.Ext(name) == ".lock":
		case name[0] == '.' && time.Since(info.ModTime()) > time.Hour:
			_ = os.Remove(filepath.Join(dir, name))
		case name[0] != '.':
			states = append(states, file{name, info.ModTime()})
		}
	}
	slices.SortFunc(states, func(a, b file) int { return b.used.Compare(a.used) })
	for _, f := range states[min(warmKept-1, len(states)):] {
		_ = errors.Join(os.Remove(filepath.Join(dir, f.name)), os.Remove(filepath.Join(dir, f.name+".lock")))
	}
}

// warm makes vm begin with the state of a guest that has booted. If there is none, vm boots.
func (vm *VM) warm(ctx context.Context, parts Parts) {
	c := &vm.config
	if !c.canBeWarm() {
		return
	}
	f, err := c.openState(ctx, parts)
	if err != nil {
		c.Logf("guest %s boots: %v", c.Name, err)
		return
	}
	vm.state = f
	if err := vm.standIn(parts); err != nil {
		c.Logf("guest %s: QEMU reads the whole kernel: %v", c.Name, err)
	}
	vm.Argv = append(vm.Argv, "-incoming", fmt.Sprintf("fd:%d", 3+len(c.ExtraFiles)))
	c.ExtraFiles = append(slices.Clone(c.ExtraFiles), f)
}

// resume makes a warm guest differ from others like it.
func (vm *VM) resume(ctx context.Context) error {
	if vm.state == nil {
		return nil
	}
	c := vm.config
	r := agent.Resume{Now: time.Now(), Rescan: len(c.NICs) > 0 || c.QEMU != c.Emulator}
	if plainID.MatchString(vm.config.Name) {
		r.Hostname = vm.config.Name
	}
	return vm.Guest.Resume(ctx, r)
}

// standIn replaces the kernel and the initramfs, which a guest that has booted needs no more, by
// small files: QEMU would read 60 MiB. Its devices must be those of the state, and one of them is
// the ROM that enters an unpacked kernel.
func (vm *VM) standIn(parts Parts) error {
	kernel, err := os.Open(parts.Kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := io.ReadFull(kernel, magic); err != nil || string(magic) != elf.ELFMAG || vm.config.AllowReset {
		return err
	}
	path := vm.path("vmlinux")
	if err := os.WriteFile(path, pvhProgram(), 0o644); err != nil {
		return err
	}
	if err := os.Truncate(parts.Initramfs, 1); err != nil {
		return err
	}
	for i, arg := range vm.Argv {
		if arg == "-kernel" && i+1 < len(vm.Argv) {
			vm.Argv[i+1] = path
		}
	}
	return nil
}

// pvhEntry is XEN_ELFNOTE_PHYS32_ENTRY of xen/interface/elfnote.h, by which QEMU knows a kernel
// that is entered by PVH.
const pvhEntry = 18

// pvhProgram returns a program of one instruction, hlt, that QEMU takes for a kernel.
func pvhProgram() []byte {
	const (
		at      = 0x100000 // 1 MiB, where kernels begin
		headers = 64 + 2*56
		note    = 3*4 + 4 + 8
	)
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&b, binary.LittleEndian, v) // a Buffer takes everything
		}
	}
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Entry: at,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01") // 64 bits, little-endian, version 1
	put(h,
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: headers + note, Vaddr: at, Paddr: at,
			Filesz: 1, Memsz: 1, Align: 1,
		},
		elf.Prog64{Type: uint32(elf.PT_NOTE), Off: headers, Filesz: note, Memsz: note, Align: 4},
		uint32(4), uint32(8), uint32(pvhEntry), [4]byte{'X', 'e', 'n'}, uint64(at), byte(0xf4))
	return b.Bytes()
}
