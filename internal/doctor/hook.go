package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmnet/internal/libvirthook/hookfile"
)

// libvirtDaemons run QEMU guests: of libvirt as one daemon, and of libvirt in parts.
var libvirtDaemons = []string{"libvirtd", "virtqemud"}

// sbin is where daemons are, which is not in everybody's $PATH.
var sbin = []string{"/usr/sbin", "/usr/local/sbin"}

// FindHook finds the program that libvirt is to call, by an absolute path: beside vmnet, or in $PATH.
func (m Machine) FindHook() (path string, found bool) {
	path, found = m.find(hookfile.Program, append([]string{m.Self}, slices.DeleteFunc(slices.Clone(m.Path), func(dir string) bool { return !filepath.IsAbs(dir) })...))
	return filepath.Clean(path), found
}

// HookSafe is an error where others than root could change what libvirt would execute as root.
func (m Machine) HookSafe(path string) error {
	if wrong, cure := m.unsafe(path); wrong != "" {
		return fmt.Errorf("%s: whoever can write it could do what libvirt can (%s)", wrong, cure)
	}
	return nil
}

// findLibvirt finds a daemon of libvirt's.
func (m Machine) findLibvirt() (path string, found bool) {
	for _, daemon := range libvirtDaemons {
		if path, found = m.find(daemon, append(sbin, m.Path...)); found {
			return path, true
		}
	}
	return "", false
}

// HookUnknown is an error where libvirt is too old for folders of hooks. One that does not tell its version is not.
func (m Machine) HookUnknown(ctx context.Context) error {
	path, found := m.findLibvirt()
	if !found {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, m.at(path), "--version").Output()
	var major, minor int
	if _, version, _ := strings.Cut(string(out), ") "); err == nil { // "libvirtd (libvirt) 9.0.0"
		_, err = fmt.Sscanf(version, "%d.%d", &major, &minor)
	}
	if err == nil && (major < 6 || major == 6 && minor < 5) {
		return fmt.Errorf("%s is version %d.%d, which does not look into %s (use libvirt 6.5 or later, or call the program from hooks/qemu)", path, major, minor, hookfile.Dir)
	}
	return nil
}

// hook looks whether libvirt can call our hook.
func (m Machine) hook(ctx context.Context) []Check {
	const name = "libvirt hook"
	if _, found := m.findLibvirt(); !found {
		return ok(name, "libvirt is not installed")
	}
	program, err := hookfile.Look(m.at(hookfile.Dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return warn(name, "vmnet hook install", "it is not installed: what libvirt's guests say of vmnet in their metadata is not done")
	case errors.Is(err, fs.ErrPermission):
		return ok(name, "only root may look at %s", hookfile.Dir)
	case err != nil:
		return fail(name, "", "%v", err)
	}
	if err := m.HookUnknown(ctx); err != nil {
		return fail(name, "", "%v", err)
	}
	return m.hookProgram(ctx, name, program)
}

// hookProgram looks at what the link points to.
func (m Machine) hookProgram(ctx context.Context, name, program string) []Check {
	const again = "vmnet hook install"
	info, err := os.Stat(m.at(program))
	if err != nil {
		return fail(name, again, "%v", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fail(name, "chmod +x "+program, "%s cannot be executed: libvirt passes it over", program)
	}
	if wrong, cure := m.unsafe(program); wrong != "" {
		return fail(name, cure, "%s: whoever can write it can do what libvirt can", wrong)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, m.at(program), "--version").Output()
	if version := strings.TrimSpace(string(out)); err != nil || !strings.HasPrefix(version, hookfile.Program+" ") {
		return fail(name, again, "%s --version: it says %.60q, %v", program, version, err)
	}
	if profile := m.Confined(program); profile != "" {
		return fail(name, AppArmorCure(program), "AppArmor's profile %s lets libvirt execute nothing there: %s", profile, program)
	}
	return ok(name, "%s", program)
}

// Confined names the AppArmor profile by which libvirt may not execute a program; empty where it may, or where that cannot be
// seen. As distributed, the profiles name what is in /usr/bin and /usr/sbin, and nothing in deeper or other folders.
func (m Machine) Confined(program string) (profile string) {
	real, err := filepath.EvalSymlinks(m.at(program))
	if err != nil || slices.Contains([]string{"/usr/bin", "/usr/sbin"}, filepath.Dir("/"+strings.TrimPrefix(real, m.Root))) {
		return ""
	}
	loaded, _ := m.read("/sys/kernel/security/apparmor/profiles")
	for line := range strings.Lines(loaded) { // "libvirtd (enforce)"
		name, mode, _ := strings.Cut(strings.TrimSpace(line), " ")
		if mode == "(enforce)" && slices.Contains(libvirtDaemons, filepath.Base(name)) && !m.allowed(filepath.Base(name), program) {
			return name
		}
	}
	return ""
}

// allowed tells whether the site's additions to the profile name the program.
func (m Machine) allowed(daemon, program string) bool {
	for _, file := range []string{"usr.sbin." + daemon, daemon} {
		if text, err := m.read("/etc/apparmor.d/local/" + file); err == nil && strings.Contains(text, program+" ") {
			return true
		}
	}
	return false
}

// AppArmorCure lets libvirt execute the program.
func AppArmorCure(program string) string {
	return fmt.Sprintf("echo '%s PUx,' >>/etc/apparmor.d/local/usr.sbin.libvirtd && apparmor_parser -r /etc/apparmor.d/usr.sbin.libvirtd; or install it in /usr/bin", program)
}
