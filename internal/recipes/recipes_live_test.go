//go:build recipes

package recipes

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestLiveRecipes runs the scripts in testdata, each in a network namespace of its own, $NETNS. The
// root of the sources is $SOURCES.
func TestLiveRecipes(t *testing.T) {
	nstest.RequireRoot(t)
	sources, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{"vmnet", "vmnet-hook", "qemu-netup", "qemu-netup-full"} {
		testprogram.Install(t, filepath.Join(bin, name), testprogram.Build(t, "vmnet/cmd/"+name))
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata", WorkdirRoot: t.TempDir(),
		Setup: func(env *testscript.Env) error {
			env.Setenv("NETNS", nstest.New(env.T().(testing.TB)).Path())
			env.Setenv("SOURCES", sources)
			// Debian's programs find Debian's Python.
			env.Setenv("PATH", bin+":/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin")
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("GOCACHE", os.Getenv("GOCACHE"))
			return nil
		},
		RequireUniqueNames: true,
	})
}
