package arch

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// foreign is a program of another module, which cannot import internal packages.
const foreign = `package main

import (
	"context"
	"fmt"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/libvirt"
	"vmnet/macvtap"
	"vmnet/macvtap/vtap"
	"vmnet/qmp"
	"vmnet/tapmgr"
	"vmnet/testvm"
	"vmnet/vhost"
)

func attach(ctx context.Context) error {
	return tapmgr.In("", func(m *tapmgr.Manager) error {
		_, err := m.List(ctx, "")
		return err
	})
}

func port(host *bridge.Host) error { return host.AddPort("br0", "tap0", brport.Settings{}) }

func device(host *macvtap.Host) (*macvtap.Device, error) {
	return host.Create("eth0", vtap.Config{Kind: vtap.Macvtap, Name: "P2", Mode: vtap.Modes(vtap.Macvtap)[0]})
}

func guest(sw *vswitch.Switch, wire *vswitch.Wire) (*vswitch.Port, error) {
	return sw.AddPort("P2", wire, vport.Config{Storm: vport.GuestStorm(vport.GuestFrames)})
}

var uses = []any{attach, port, device, guest, bridge.Open, libvirt.Dial, macvtap.Open, qmp.Dial, testvm.Start, vhost.Open}

func main() {
	vlans, err := brport.ParseVLANs("7,2-4")
	fmt.Println(brport.FormatVLANs(vlans), err, len(uses))
}
`

// TestForeignModule builds a module that uses this one's public packages by a replace directive, as
// CONTRIBUTING.md says. It needs no network: the other modules are those of go.mod.
func TestForeignModule(t *testing.T) {
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(filepath.Join(top, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(top, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	mod := "module example.org/foreign\n\nrequire vmnet v0.0.0\n\nreplace vmnet => " + top + "\n\n"
	mod += regexp.MustCompile(`(?m)^go .*$`).FindString(string(own)) + "\n\n"
	mod += strings.Join(regexp.MustCompile(`(?ms)^require \(.*?^\)$`).FindAllString(string(own), -1), "\n\n") + "\n"
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": mod, "go.sum": string(sums), "main.go": foreign} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "program")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"go", "build", "-mod=mod", "-o", program, "."}, ""},
		{[]string{program}, "2-4,7 <nil> 10\n"},
	} {
		cmd := exec.Command(c.args[0], c.args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=-trimpath", "GOWORK=off", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != c.want {
			t.Fatalf("%q: %v: %s, want %q", c.args, err, out, c.want)
		}
	}
}
