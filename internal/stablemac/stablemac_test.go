package stablemac

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// machine makes the files of a machine, except those without a text.
func machine(t *testing.T, machineID, bootID, name string) (root string) {
	t.Helper()
	root = t.TempDir()
	for path, text := range map[string]string{machineIDFile: machineID, bootIDFile: bootID, hostNameFile: name} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if text == "absent" {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func address(root string) net.HardwareAddr {
	return derive(identity(root), []byte{0x52, 0x54, 0}, []string{"web", "net0"})
}

func TestHostsWithoutAMachineIDDiffer(t *testing.T) {
	const zeros = "00000000000000000000000000000000"
	for _, id := range []string{"absent", "", "\n", "uninitialized\n", zeros, "localhost\n"} {
		a, b := machine(t, id, "a3c0\n", "debian\n"), machine(t, id, "77f1\n", "debian\n")
		container := machine(t, id, "a3c0\n", "c1\n")
		if address(a).String() == address(b).String() || address(a).String() == address(container).String() {
			t.Errorf("machine id %q: two hosts get %s", id, address(a))
		}
		if first, again := address(a), address(a); first.String() != again.String() {
			t.Errorf("machine id %q: the same host gets two addresses", id)
		}
		if err := Check(a); !errors.Is(err, ErrNoMachineID) {
			t.Errorf("machine id %q: %v", id, err)
		}
	}
}

func TestAMachineIDOutlastsABoot(t *testing.T) {
	const id = "b08dfa6083e7567a1921a715000001fb"
	before, after := machine(t, id+"\n", "a3c0\n", "debian\n"), machine(t, id, "77f1\n", "other\n")
	// Earlier versions made the same address of it.
	if got := address(before); got.String() != address(after).String() || got.String() != "52:54:00:68:d5:b6" {
		t.Errorf("%s, and after a boot %s", got, address(after))
	}
	if err := Check(before); err != nil {
		t.Error(err)
	}
}

// TestAddressesStay: what guests know each other by does not change with vmnet's version.
func TestAddressesStay(t *testing.T) {
	got := derive("a3c0", []byte{0x52, 0x54, 0}, []string{"web", "net0"}).String()
	if want := "52:54:00:c1:70:21"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	id := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	if a, b := UUID("web", "net0"), UUID("webnet0"); !id.MatchString(a) || a == b || a != UUID("web", "net0") {
		t.Errorf("UUIDs %s and %s", a, b)
	}
}
