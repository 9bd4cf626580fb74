package testvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vmnet/testvm/guest"
)

// program is the import path of the program that is host and /init.
const program = "vmnet/cmd/testvm"

// packed has the archives that this process has made, by what they were made from: packing and
// hashing one takes longer than all else that starts a guest.
var packed = struct {
	mu       sync.Mutex
	archives map[string]content
}{archives: map[string]content{}}

// initramfs returns the archive that buildInitramfs makes, and makes each one once.
func initramfs(k Kernel, init content, c Config) (content, error) {
	busybox, _ := exec.LookPath("busybox")
	key := fmt.Sprintf("%q %x %q %t %q", k, init.sum, c.Modules, c.Root != "", busybox)
	packed.mu.Lock()
	defer packed.mu.Unlock()
	if archive, ok := packed.archives[key]; ok {
		return archive, nil
	}
	b, err := buildInitramfs(k, init.bytes, c)
	if err != nil {
		return content{}, err
	}
	packed.archives[key] = newContent(b)
	return packed.archives[key], nil
}

// buildInitramfs packs /init, the modules with their dependencies, and, for interactive use,
// busybox if the host has a static one. A guest with another root needs only what it takes to mount
// that. The archive is not compressed: TCG unpacks slowly.
func buildInitramfs(k Kernel, init []byte, c Config) ([]byte, error) {
	modules := slices.Concat(guestModules, c.Modules)
	if c.Root != "" {
		modules = append(modules, rootModules...)
	}
	files, err := moduleFiles(k.Modules, modules)
	if err != nil {
		return nil, err
	}
	w := &cpioWriter{}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", guest.ModulesDir[1:]} {
		w.dir(dir)
	}
	w.charDevice("dev/console", 0o600, 5, 1) // before devtmpfs is mounted
	w.charDevice("dev/null", 0o666, 1, 3)
	w.file("init", 0o755, init)
	for i, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("pack kernel module: %w", err)
		}
		w.file(fmt.Sprintf("%s/%03d-%s", guest.ModulesDir[1:], i, filepath.Base(file)), 0o644, content)
	}
	if c.Root == "" {
		addBusybox(w)
	} else {
		w.dir("lib")
		w.dir("lib/modules")
		w.symlink(guest.ModuleTrees[1:]+k.Release, k.Modules)
	}
	return w.finish(), nil
}

// udhcpcScript is what udhcpc(8) runs with the settings that a DHCP server has sent.
const udhcpcScript = `#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
[ -z "$router" ] || ip route add default via "$router"
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
[ -z "$domain" ] || echo "search $domain" >>/etc/resolv.conf
echo "$interface: $ip"
`

// addBusybox adds busybox and links for all its applets. The guest works without it.
func addBusybox(w *cpioWriter) {
	path, err := exec.LookPath("busybox")
	if err != nil || !isStatic(path) {
		return
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return
	}
	w.file("bin/busybox", 0o755, content)
	w.dir("etc/udhcpc")
	w.file("etc/udhcpc/default.script", 0o755, []byte(udhcpcScript))
	names, _ := exec.Command(path, "--list").Output()
	for name := range strings.FieldsSeq(string(names)) {
		if name != "busybox" && !strings.Contains(name, "/") {
			w.symlink("bin/"+name, "busybox")
		}
	}
}

// isStatic reports whether path is a program that needs no dynamic loader.
func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// A content has the bytes of a file.
type content struct {
	bytes []byte
	sum   [sha256.Size]byte
}

func newContent(b []byte) content { return content{b, sha256.Sum256(b)} }

// initProgram returns the program that becomes /init: the one at path. If path is empty, it is this
// program if that is a static cmd/testvm, or the one that the surrounding lab host has, or a new
// build.
func initProgram(ctx context.Context, path string) (content, error) {
	info, ok := debug.ReadBuildInfo()
	switch {
	case path == "" && ok && info.Path == program && isStatic("/proc/self/exe"):
		path = "/proc/self/exe"
	case path == "" && guest.Inside():
		path = guest.Program
	case path == "":
		return built.get(ctx)
	case !isStatic(path):
		return content{}, fmt.Errorf(
			"use %s as the guest's /init: it is not a static program (build it with CGO_ENABLED=0)", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return content{}, fmt.Errorf("read the guest's /init: %w", err)
	}
	return newContent(b), nil
}

// built is the program that this process has built.
var built buildOnce

type buildOnce struct {
	mu      sync.Mutex
	content content
}

// get builds the program once. An error is not kept: ctx may be its cause.
func (b *buildOnce) get(ctx context.Context) (content, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.content.bytes != nil {
		return b.content, nil
	}
	cache, err := CacheDir()
	if err != nil {
		return content{}, err
	}
	program, err := buildProgram(ctx, cache)
	if err != nil {
		return content{}, fmt.Errorf("build the guest's /init: %w", err)
	}
	b.content = newContent(program)
	return b.content, nil
}

// buildProgram builds cmd/testvm in dir. Processes take turns, so that each reads what it built. If
// the last build is up to date, go does not rebuild it.
func buildProgram(ctx context.Context, dir string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "testvm.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	out := filepath.Join(dir, "testvm")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%w (name a static testvm program instead, or install Go)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("go build %s: %w: %s", program, err, strings.TrimSpace(stderr.String()))
	}
	return os.ReadFile(out)
}
