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

// libvirtDaemons are the daemons that run QEMU guests: the single daemon and the modular one.
var libvirtDaemons = []string{"libvirtd", "virtqemud"}

// sbin are the directories of daemons, which not every user's $PATH has.
var sbin = []string{"/usr/sbin", "/usr/local/sbin"}

// FindHook finds the program for libvirt to call, by an absolute path: beside vmnet, or in $PATH.
func (m Machine) FindHook() (path string, found bool) {
	path, found = m.find(hookfile.Program,
		append([]string{m.Self}, slices.DeleteFunc(slices.Clone(m.Path), func(dir string) bool {
			return !filepath.IsAbs(dir)
		})...))
	return filepath.Clean(path), found
}

// HookSafe returns an error if a user other than root could change what libvirt would execute as
// root.
func (m Machine) HookSafe(path string) error {
	if wrong, cure := m.unsafe(path); wrong != "" {
		return fmt.Errorf("%s: a user who can write it has libvirt's privilege (%s)", wrong, cure)
	}
	return nil
}

// findLibvirt finds a daemon of libvirt.
func (m Machine) findLibvirt() (path string, found bool) {
	for _, daemon := range libvirtDaemons {
		if path, found = m.find(daemon, append(sbin, m.Path...)); found {
			return path, true
		}
	}
	return "", false
}

// HookUnknown returns an error if libvirt is too old for directories of hooks. One that does not
// print its version counts as new enough.
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
		return fmt.Errorf(
			"%s is version %d.%d, which ignores %s (use libvirt 6.5 or later, or call the program from hooks/qemu)",
			path, major, minor, hookfile.Dir)
	}
	return nil
}

// hook checks that libvirt can call vmnet's hook.
func (m Machine) hook(ctx context.Context) []Check {
	const name = "libvirt hook"
	if _, found := m.findLibvirt(); !found {
		return ok(name, "libvirt is not installed")
	}
	program, err := hookfile.Look(m.at(hookfile.Dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return warn(name, "vmnet hook install",
			"it is not installed: the NICs that libvirt's guests declare in their metadata are not made")
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

// hookProgram checks the target of the link.
func (m Machine) hookProgram(ctx context.Context, name, program string) []Check {
	const again = "vmnet hook install"
	info, err := os.Stat(m.at(program))
	if err != nil {
		return fail(name, again, "%v", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fail(name, "chmod +x "+program, "%s cannot be executed: libvirt skips it", program)
	}
	if wrong, cure := m.unsafe(program); wrong != "" {
		return fail(name, cure, "%s: a user who can write it has libvirt's privilege", wrong)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, m.at(program), "--version").Output()
	if version := strings.TrimSpace(string(out)); err != nil || !strings.HasPrefix(version, hookfile.Program+" ") {
		return fail(name, again, "%s --version: it says %.60q, %v", program, version, err)
	}
	if profile := m.Confined(program); profile != "" {
		return fail(name, AppArmorCure(program), "AppArmor's profile %s lets libvirt execute nothing there: %s",
			profile, program)
	}
	if real, err := filepath.EvalSymlinks(m.at(program)); err == nil {
		beside := filepath.Join(filepath.Dir(real), "vmnet")
		if _, err := os.Stat(beside); err != nil {
			return warn(name, "install vmnet beside it",
				"%v: no guest whose NICs are declared can migrate to this host", err)
		}
	}
	return ok(name, "%s", program)
}

// Confined returns the AppArmor profile that keeps libvirt from executing a program. It is empty if
// libvirt may, or if that cannot be seen. As distributed, the profiles allow programs in /usr/bin
// and /usr/sbin, and none in deeper or other directories.
func (m Machine) Confined(program string) (profile string) {
	real, err := filepath.EvalSymlinks(m.at(program))
	if err != nil || slices.Contains([]string{"/usr/bin", "/usr/sbin"},
		filepath.Dir("/"+strings.TrimPrefix(real, m.Root))) {
		return ""
	}
	loaded, _ := m.read("/sys/kernel/security/apparmor/profiles")
	for line := range strings.Lines(loaded) { // "libvirtd (enforce)"
		name, mode, _ := strings.Cut(strings.TrimSpace(line), " ")
		if mode == "(enforce)" && slices.Contains(libvirtDaemons, filepath.Base(name)) &&
			!m.allowed(filepath.Base(name), program) {
			return name
		}
	}
	return ""
}

// allowed reports whether the site's additions to the profile name the program.
func (m Machine) allowed(daemon, program string) bool {
	for _, file := range []string{"usr.sbin." + daemon, daemon} {
		if text, err := m.read("/etc/apparmor.d/local/" + file); err == nil && strings.Contains(text, program+" ") {
			return true
		}
	}
	return false
}

// AppArmorCure returns a command that lets libvirt execute the program.
func AppArmorCure(program string) string {
	return fmt.Sprintf(
		"echo '%s PUx,' >>/etc/apparmor.d/local/usr.sbin.libvirtd && apparmor_parser -r /etc/apparmor.d/usr.sbin.libvirtd; or install it in /usr/bin",
		program)
}
