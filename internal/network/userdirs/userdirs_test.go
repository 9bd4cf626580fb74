package userdirs

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func from(env map[string]string) func(string) string {
	return func(key string) string { return env[key] }
}

func TestOf(t *testing.T) {
	configs, state, err := Of(from(map[string]string{
		"HOME": "/home/u", "XDG_CONFIG_HOME": "relative", "XDG_STATE_HOME": "/state",
	}))
	if configs != "/home/u/.config/vmnet/networks.d" || state != "/state/vmnet/networks" || err != nil {
		t.Error(configs, state, err)
	}
	if _, _, err := Of(from(nil)); err == nil {
		t.Error("no HOME is no error")
	}
}

func TestJoin(t *testing.T) {
	home := t.TempDir()
	env := from(map[string]string{"HOME": home})
	for _, name := range []string{"lab", "../lab", "Lab"} {
		s := nic.Spec{Network: name}
		if joined, err := Join(&s, env); joined || err != nil || s.Network != name {
			t.Errorf("a network without a file: %v, %v, %+v", joined, err, s)
		}
	}
	file := filepath.Join(home, ".config/vmnet/networks.d/lab.yaml")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := nic.Spec{Network: "lab"}
	joined, err := Join(&s, env)
	if !joined || err != nil || s.Network != "" || s.Switch == nil || s.Switch.Name != "lab" {
		t.Errorf("%v, %v, %+v", joined, err, s)
	}
	if err := Settle(&s, env); err == nil {
		t.Error("an empty file was read")
	}
	if err := os.WriteFile(file, []byte("subnet: 10.66.0.0/24\nisolated: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Settle(&s, env); err != nil || !s.Port.Isolated {
		t.Errorf("%v, %+v", err, s)
	}
	s = nic.Spec{Network: "lab", IP: []netip.Addr{netip.MustParseAddr("10.66.0.20")}}
	if _, err := Join(&s, env); err == nil {
		t.Error("an address that the file does not give")
	}
}
