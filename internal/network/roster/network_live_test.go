package roster

import (
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/network/config"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// host opens a namespace with links of those names, kinds and aliases.
func host(t *testing.T, links ...[3]string) *rtnl.Conn {
	t.Helper()
	nl, err := rtnl.Open(nstest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	for _, l := range links {
		if err := nl.Create(l[1], rtnl.Name(l[0])); err != nil {
			t.Fatal(err)
		}
		made, err := nl.Link(l[0])
		if err == nil {
			err = nl.Set(made.Index, rtnl.Alias(l[2]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return nl
}

func TestLiveBridge(t *testing.T) {
	nl := host(t, [3]string{"lab", "bridge", "vmnet network=lab ip_forward=0"}, [3]string{"br0", "bridge", ""},
		[3]string{"lan", "bridge", "vmnet network=former"})
	lab, err := nl.Link("lab")
	if err == nil {
		err = nl.AddAltName(lab.Index, "laboratory")
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := config.Dir(t.TempDir())
	if err := dir.Write(&config.Network{
		Name: "later", Domain: "later.internal", Subnet: netip.MustParsePrefix("10.66.0.0/24"),
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := Bridge(nl, dir, "lab"); err != nil || got.Index != lab.Index {
		t.Errorf("%+v, %v", got, err)
	}
	for name, want := range map[string]string{
		"later":      "network later: it is not applied (vmnet network apply later)",
		"laboratory": "there is no network laboratory: want lab, later",
		"none":       "there is no network none: want lab, later",
		"br0":        "network br0: there is a device of that name, and it is not a network's",
		"lan":        "network lan: there is a device of that name, and it is not a network's",
		"../lab":     "network name \"../lab\": want",
	} {
		got, err := Bridge(nl, dir, name)
		missing := strings.Contains(want, "not applied") || strings.HasPrefix(want, "there is no")
		if err == nil || !strings.HasPrefix(err.Error(), want) || errors.Is(err, fs.ErrNotExist) != missing {
			t.Errorf("%s: %+v, %v, want %s", name, got, err, want)
		}
	}
	if names, err := Names(nl, dir); err != nil || !slices.Equal(names, []string{"lab", "later"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := Bridge(host(t), config.Dir(t.TempDir()), "lab"); err == nil ||
		err.Error() != "there is no network lab (vmnet network create lab)" {
		t.Error(err)
	}
}
