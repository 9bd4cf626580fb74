package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmnet/tapmgr/nic"
)

// TestLiveMigrate moves a guest to another libvirtd in another network namespace and back.
func TestLiveMigrate(t *testing.T) {
	hosts := make([]*host, 2)
	for i := range hosts {
		hosts[i] = newHost(t, fmt.Sprintf(`host_uuid = "00112233-4455-6677-8899-aabbccddee0%d"`, i))
		hosts[i].link()
		hosts[i].script("zz", `echo $2 >>$DIR/ops; cat >/dev/null`)
		hosts[i].reload()
		hosts[i].lower("eth1")
	}
	from, to := hosts[0], hosts[1]
	from.define("web",
		metadata(`<vmnet:nic id="net0" bridge="br0" isolated="yes"/>`, `<vmnet:nic id="net1" macvtap="eth1"/>`,
			`<vmnet:nic mac="`+guestMAC(3).String()+`" isolated="yes"/>`),
		handed("web-0", "net0", 1, "")+handed("web-1", "net1", 2, "")+onBridge(3))
	from.virt.Virsh("start", "web")
	for range 2 {
		socket := filepath.Join(to.dir(), "migrate")
		from.virt.Virsh("migrate", "--live", "--persistent", "--undefinesource", "web", to.virt.URI(), "--migrateuri",
			"unix://"+socket, "--timeout", "60")
		from.nothingLeft()
		found := to.nics("web")["net0"]
		if found.State != "forwarding" || found.Port != "isolated" || found.PID != to.virt.QEMU("web") ||
			to.nics("web")["net1"].State != nic.Up {
			t.Errorf("it has %+v", to.nics("web"))
		}
		for _, l := range to.links() {
			if !strings.HasPrefix(l, "web-1") && !to.isolated(l) {
				t.Errorf("%s is not isolated", l)
			}
		}
		ops, _ := os.ReadFile(filepath.Join(to.dir(), "ops"))
		if got := strings.Fields(string(ops)); len(got) < 4 ||
			strings.Join(got[len(got)-4:], " ") != "migrate prepare start started" {
			t.Errorf("operations: %v", got)
		}
		from, to = to, from
	}

	// Where the devices cannot be made it stays.
	br, err := to.nl.LinkByName("br0")
	if err == nil {
		err = to.nl.LinkDel(br)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := from.virt.Try("migrate", "--live", "web", to.virt.URI(), "--migrateuri",
		"unix://"+filepath.Join(to.dir(), "migrate"))
	if err == nil || !strings.Contains(out, "vmnet-hook: prepare web: prepare web/net0: ") {
		t.Errorf("migrate: %v: %s", err, out)
	}
	to.nothingLeft()
	if nics := from.nics("web"); nics["net0"].State != "forwarding" || from.virt.Virsh("domstate", "web") != "running" {
		t.Errorf("it has %+v", nics)
	}
	from.virt.Virsh("destroy", "web")
	from.nothingLeft()
}
