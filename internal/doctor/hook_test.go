package doctor

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"vmnet/internal/libvirthook/hookfile"
	"vmnet/internal/nstest"
)

// TestLiveHook needs root: the programs that libvirt executes must belong to root.
func TestLiveHook(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	const daemon, program, local = "/usr/sbin/libvirtd*", "/usr/bin/" + hookfile.Program,
		"/usr/local/bin/" + hookfile.Program
	const script, profiles = "#!/bin/sh\necho vmnet-hook 1.0\n", "/sys/kernel/security/apparmor/profiles"
	for _, c := range []struct {
		name   string
		files  map[string]string
		target string // of the link; empty for none
		want   Check
	}{
		{"no libvirt", nil, "", Check{"libvirt hook", OK, "libvirt is not installed", ""}},
		{
			"not installed",
			map[string]string{daemon: ""},
			"",
			Check{"libvirt hook", Warn, "not installed", "vmnet hook install"},
		},
		{
			"installed",
			map[string]string{daemon: "", program + "*": script},
			program,
			Check{"libvirt hook", OK, program, ""},
		},
		{"new libvirt", map[string]string{
			daemon:        "#!/bin/sh\necho 'libvirtd (libvirt) 6.5.0'\n",
			program + "*": script,
		}, program, Check{"libvirt hook", OK, program, ""}},
		{"old libvirt", map[string]string{
			daemon:        "#!/bin/sh\necho 'libvirtd (libvirt) 6.4.9'\n",
			program + "*": script,
		}, program, Check{"libvirt hook", Fail, "version 6.4, which ignores", ""}},
		{
			"program gone",
			map[string]string{daemon: ""},
			program,
			Check{"libvirt hook", Fail, "no such file", "vmnet hook install"},
		},
		{
			"no program",
			map[string]string{daemon: "", program: script},
			program,
			Check{"libvirt hook", Fail, "cannot be executed", "chmod +x"},
		},
		{
			"another program",
			map[string]string{daemon: "", program + "*": "#!/bin/sh\necho other\n"},
			program,
			Check{"libvirt hook", Fail, `it says "other"`, "vmnet hook install"},
		},
		{
			"not ours",
			map[string]string{daemon: "", hookfile.Dir + "/vmnet*": script},
			"",
			Check{"libvirt hook", Fail, "not vmnet's", ""},
		},
		{
			"confined",
			map[string]string{daemon: "", local + "*": script, profiles: "x (enforce)\nlibvirtd (enforce)\n"},
			local,
			Check{"libvirt hook", Fail, "AppArmor's profile libvirtd", local + " PUx,"},
		},
		{
			"confined, in /usr/bin",
			map[string]string{daemon: "", program + "*": script, profiles: "libvirtd (enforce)\n"},
			program,
			Check{"libvirt hook", OK, program, ""},
		},
		{
			"only watched",
			map[string]string{daemon: "", local + "*": script, profiles: "libvirtd (complain)\n"},
			local,
			Check{"libvirt hook", OK, local, ""},
		},
		{
			"no vmnet beside it",
			map[string]string{daemon: "", program + "*": script},
			program,
			Check{"libvirt hook", Warn, "can migrate to this host", "install vmnet"},
		},
		{
			"confined, allowed",
			map[string]string{
				daemon: "", local + "*": script, profiles: "libvirtd (enforce)\n",
				"/etc/apparmor.d/local/usr.sbin.libvirtd": "\n" + local + " PUx,\n",
			},
			local,
			Check{"libvirt hook", OK, local, ""},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := maps.Clone(c.files)
			if files != nil && c.name != "no vmnet beside it" {
				files["/usr/bin/vmnet*"], files["/usr/local/bin/vmnet*"] = "", ""
			}
			m := made(t, files)
			if c.target != "" {
				if err := os.MkdirAll(m.at(hookfile.Dir), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(c.target, m.at(filepath.Join(hookfile.Dir, hookfile.Name))); err != nil {
					t.Fatal(err)
				}
			}
			wants(t, m.hook(context.Background()), c.want)
		})
	}
	m := made(t, map[string]string{daemon: "", program + "*": script})
	if path, found := m.FindHook(); !found || path != program || m.HookSafe(path) != nil {
		t.Errorf("%s, %v, %v", path, found, m.HookSafe(path))
	}
	if err := os.Chmod(m.at(program), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := m.HookSafe(program); err == nil {
		t.Error("a program that all can write is safe")
	}
}
