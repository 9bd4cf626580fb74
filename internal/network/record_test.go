package network

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/uplink"
)

func TestRecord(t *testing.T) {
	for text, want := range map[string]record{
		"vmnet network=lab":                            {network: "lab"},
		"vmnet network=lab integrated=1 ip_forward=0":  {network: "lab", integrated: true, memory: memory{ip4: true}},
		"vmnet network=lab ip_forward=0 ip6_forward=0": {network: "lab", memory: memory{ip4: true, ip6: true}},
		"vmnet network=lab accept_ra=eth0,eth1":        {network: "lab", memory: memory{acceptRA: []string{"eth0", "eth1"}}},
		"vmnet network=lan uplink=eth1":                {network: "lan", uplink: "eth1"},
		"vmnet network=lan uplink=br0.100 vlans=self:100:br0,port:100:eth1": {
			network: "lan", uplink: "br0.100", joined: []uplink.Membership{
				{Link: "br0", Self: true, VLAN: 100}, {Link: "eth1", VLAN: 100},
			},
		},
		"vmnet network=lan uplink=eth1 moved=confirmed": {network: "lan", uplink: "eth1", moved: true},
		"vmnet network=lan uplink=eth1 moved=1500": {
			network: "lan", uplink: "eth1", moved: true, deadline: 1500 * time.Millisecond,
		},
	} {
		got, ok := recordOf(&rtnl.Link{Alias: text, Bridge: &rtnl.Bridge{}})
		if !ok || !reflect.DeepEqual(got, want) || got.String() != text {
			t.Errorf("%s: %+v, %v", text, got, ok)
		}
		if _, ok := recordOf(&rtnl.Link{Alias: text}); ok {
			t.Errorf("%s, of what is no bridge", text)
		}
	}
	for _, text := range []string{
		"", "vmnet", "vmnet vm=P2 nic=net0", "network=lab",
		"vmnet network=%zz", "vmnet network=",
	} {
		if r, ok := recordOf(&rtnl.Link{Alias: text, Bridge: &rtnl.Bridge{}}); ok {
			t.Errorf("%q: %+v", text, r)
		}
	}
	a := memory{ip4: true, acceptRA: []string{"eth0"}}
	b := memory{ip6: true, acceptRA: []string{"eth0", "eth1"}}
	if both := a.and(b); !both.includes(a) || !both.includes(b) || a.includes(b) ||
		!both.without(b).without(a).empty() {
		t.Errorf("%+v", both)
	}
}

// TestSystemd: which commands systemd gets.
func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	script := "#!/bin/sh\necho \"$@\" >>" + log +
		"\n[ \"$1\" = enable -o \"$1\" = restart ] || { echo no such unit >&2; exit 5; }\n"
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	n := &config.Network{Name: "lab"}
	if err := (Systemd{}).Start(context.Background(), nil, n); err != nil {
		t.Error(err)
	}
	if (Systemd{}).AtBoot(context.Background(), n) {
		t.Error("it is enabled, says a systemctl that fails")
	}
	err := Systemd{}.Stop(context.Background(), nil, n)
	if err == nil || err.Error() != "systemctl disable --now vmnet-network@lab.service: exit status 5: no such unit "+
		"(journalctl -u 'vmnet-network@*' says more)" {
		t.Error(err)
	}
	got, err := os.ReadFile(log)
	const want = "enable vmnet-network@lab.service\nrestart vmnet-network@lab.service\n" +
		"is-enabled --quiet vmnet-network@lab.service\ndisable --now vmnet-network@lab.service\n"
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}

// TestGuardBySystemd: which service systemd starts, and what is said if it does not.
func TestGuardBySystemd(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	script := "#!/bin/sh\necho \"$@\" >>" + log + "\n[ -z \"$BROKEN\" ] || { echo no bus >&2; exit 5; }\n"
	if err := os.WriteFile(filepath.Join(dir, "systemd-run"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	g := Guards{Command: []string{"vmnet", "network", "guard", "--"}, Systemd: true}
	if err := g.Start(t.Context(), "lan"); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(log)
	if err != nil || !strings.HasSuffix(string(text), " -- vmnet network guard -- lan\n") ||
		!strings.Contains(string(text), "--service-type=notify --unit=vmnet-network-guard-lan-") {
		t.Errorf("%s, %v", text, err)
	}
	t.Setenv("BROKEN", "1")
	if err := g.Start(t.Context(), "lan"); err == nil || !strings.HasSuffix(err.Error(), ": no bus") {
		t.Error(err)
	}
}

// TestUplinkNeedsRoot: a user's network is in a namespace without the host's interfaces.
func TestUplinkNeedsRoot(t *testing.T) {
	n := &config.Network{Name: "lan", Uplink: &config.Uplink{Device: "eth1"}}
	if _, err := (&Manager{}).stepsElsewhere(t.Context(), n); err == nil ||
		!strings.Contains(err.Error(), "(as root: vmnet network create lan --uplink eth1)") {
		t.Error(err)
	}
}
