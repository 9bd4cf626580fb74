package doctor

import (
	"os"
	"testing"

	"vmnet/internal/nstest"
)

// The program that the helper becomes must exist, belong to root, and have no privilege of its own.
func TestLiveForms(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	const full = "/usr/libexec/vmnet/" + Full
	caps := setcap("\x01\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, c := range []struct {
		name, path string
		change     func(path string) error
		want       Check
	}{
		{
			"where it is installed",
			full, mode(0o755),
			Check{"helper's forms", OK, full + ", without privilege of its own", ""},
		},
		{"beside the helper", "/usr/bin/" + Full, mode(0o755), Check{"helper's forms", OK, "/usr/bin/" + Full, ""}},
		{"none", full, os.Remove, Check{
			"helper's forms", Warn, "only what QEMU asks its bridge helper for",
			"make install",
		}},
		{"not to execute", full, mode(0o644), Check{"helper's forms", Warn, "only what QEMU", "make install"}},
		{"for others to write", full, mode(0o775), Check{
			"helper's forms", Fail, full + " has mode 0775",
			"chmod go-w " + full,
		}},
		{"another's", full, func(path string) error {
			return os.Chown(path, 1000, -1)
		}, Check{"helper's forms", Fail, "belongs to uid 1000", "chown root " + full}},
		{
			"setuid", full, mode(0o755 | os.ModeSetuid),
			Check{"helper's forms", Fail, "privilege of its own", "chmod u-s " + full},
		},
		{"with capabilities", full, caps, Check{"helper's forms", Fail, "privilege of its own", "setcap -r " + full}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := made(t, map[string]string{helperPath + "*": "", c.path + "*": ""})
			if err := c.change(m.at(c.path)); err != nil {
				t.Fatal(err)
			}
			wants(t, m.helper(), c.want)
		})
	}
}
