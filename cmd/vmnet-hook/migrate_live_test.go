package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmnet/internal/testprogram"
	"vmnet/tapmgr/nic"
)

// twoHosts are hosts whose libvirtds call the hook, and know each other.
func twoHosts(t *testing.T) (from, to *host) {
	t.Helper()
	var hosts [2]*host
	for i := range hosts {
		h := newHost(t, fmt.Sprintf(`host_uuid = "00112233-4455-6677-8899-aabbccddee0%d"`, i))
		h.link()
		h.script("zz", `echo $2 >>$DIR/ops; [ $2 != started ] || ip -o link >$DIR/links; cat >/dev/null`)
		h.reload()
		h.lower("eth1")
		h.Libvirt = h.virt.URI()
		testprogram.Install(t, filepath.Join(filepath.Dir(h.hook), "vmnet"), testprogram.Build(t, "../vmnet"))
		hosts[i] = h
	}
	return hosts[0], hosts[1]
}

// migrate has libvirt move a guest to another host.
func (h *host) migrate(guest string, to *host, more ...string) (string, error) {
	return h.virt.Try(append([]string{
		"migrate", guest, to.virt.URI(), "--persistent", "--undefinesource",
		"--migrateuri", "unix://" + filepath.Join(to.dir(), "migrate"),
	}, more...)...)
}

// isDown reports whether a device was down when the guest's QEMU had been started.
func (h *host) isDown(device string) bool {
	h.Helper()
	text, err := os.ReadFile(filepath.Join(h.dir(), "links"))
	if err != nil {
		h.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " "+device+":") || strings.Contains(line, " "+device+"@") {
			_, flags, _ := strings.Cut(line, "<")
			flags, _, _ = strings.Cut(flags, ">")
			return !strings.Contains(","+flags+",", ",UP,")
		}
	}
	h.Fatalf("no %s among\n%s", device, text)
	return false
}

// states are those of a guest's NICs, by their ids.
func (h *host) states(guest string) map[string]nic.State {
	h.Helper()
	states := map[string]nic.State{}
	for id, n := range h.nics(guest) {
		states[id] = n.State
	}
	return states
}

// TestLiveMigrate moves a guest to another libvirtd in another network namespace and back. Until
// the guest has arrived, its devices there are down: those of vmnet, and those of libvirt.
func TestLiveMigrate(t *testing.T) {
	from, to := twoHosts(t)
	from.define("web",
		metadata(`<vmnet:nic id="net0" bridge="br0" isolated="yes"/>`, `<vmnet:nic id="net1" macvtap="eth1"/>`,
			`<vmnet:nic id="net2" bridge="br0" isolated="yes"/>`, `<vmnet:nic id="net4" macvtap="eth1" mode="vepa"/>`,
			`<vmnet:nic mac="`+guestMAC(3).String()+`" isolated="yes"/>`),
		handed("web-0", "net0", 1, "")+handed("web-1", "net1", 2, "")+onBridge(3)+
			adopted("ethernet", "", "web-2", "net2", 4)+
			adopted("direct", `<source dev='eth1' mode='bridge'/>`, "web-4", "net4", 5))
	from.virt.Virsh("start", "web")
	if from.isDown("web-0") || from.isDown("web-2") {
		t.Error("a guest that starts has devices that are down")
	}
	want := fmt.Sprint(map[string]nic.State{"net0": "forwarding", "net1": nic.Up, "net2": "forwarding", "net4": nic.Up})
	for range 2 {
		if out, err := from.migrate("web", to, "--live", "--timeout", "60"); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, to.virt.Log())
		}
		from.nothingLeft()
		for _, device := range []string{"web-0", "web-1", "web-2", "web-4"} {
			if !to.isDown(device) {
				t.Errorf("%s was up before the guest arrived", device)
			}
		}
		to.eventually("its NICs are raised", func() bool { return fmt.Sprint(to.states("web")) == want })
		if n := to.nics("web")["net0"]; n.Port != "isolated" || n.PID != to.virt.QEMU("web") {
			t.Errorf("it has %+v", n)
		}
		for _, l := range to.links() {
			if l != "web-1" && l != "web-4" && !to.isolated(l) {
				t.Errorf("%s is not isolated", l)
			}
		}
		ops, _ := os.ReadFile(filepath.Join(to.dir(), "ops"))
		if got := strings.Fields(string(ops)); len(got) < 4 ||
			strings.Join(got[len(got)-4:], " ") != "migrate prepare start started" {
			t.Errorf("operations: %v", got)
		}
		to.noNotes()
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
	out, err := from.migrate("web", to, "--live")
	if err == nil || !strings.Contains(out, "vmnet-hook: prepare web: prepare web/net0: ") {
		t.Errorf("migrate: %v: %s", err, out)
	}
	to.nothingLeft()
	to.noNotes()

	// Nor does it go where nothing could commit its NICs.
	if err := os.Remove(filepath.Join(filepath.Dir(to.hook), "vmnet")); err != nil {
		t.Fatal(err)
	}
	out, err = from.migrate("web", to, "--live")
	if err == nil || !strings.Contains(out, "vmnet-hook: migrate web: ") || !strings.Contains(out, "install vmnet") {
		t.Errorf("migrate: %v: %s", err, out)
	}
	if nics := from.nics("web"); nics["net0"].State != "forwarding" || from.virt.Virsh("domstate", "web") != "running" {
		t.Errorf("it has %+v", nics)
	}
	from.virt.Virsh("destroy", "web")
	from.nothingLeft()
}

// adopted is an interface whose device libvirt makes.
func adopted(kind, source, device, id string, n int) string {
	return fmt.Sprintf(
		`<interface type='%s'><mac address='%s'/>%s<target dev='%s'/><model type='virtio'/>`+
			`<alias name='ua-vmnet-%s'/></interface>`, kind, guestMAC(n), source, device, id)
}

// noNotes wants nothing of guests that arrive to be left in the directory of the hook.
func (h *host) noNotes() {
	h.Helper()
	left, _ := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/vmnet/arriving/*", h.virt.PID()))
	if len(left) > 0 {
		h.Errorf("left: %q", left)
	}
}

// vmnet runs vmnet on the host: in the namespaces of its libvirtd.
func (h *host) vmnet(args ...string) (string, error) {
	h.Helper()
	ctx, cancel := testContext()
	defer cancel()
	path := filepath.Join(filepath.Dir(h.hook), "vmnet")
	in := []string{
		"--target", strconv.Itoa(h.virt.PID()), "--mount", "--pid", "--net", path, "--libvirt", h.virt.Socket(),
	}
	out, err := exec.CommandContext(ctx, "nsenter", append(in, args...)...).CombinedOutput()
	return string(out), err
}

// refusesWhileAway wants the verbs to leave a guest's NICs alone until the guest has arrived.
func (h *host) refusesWhileAway(guest string) {
	h.Helper()
	for _, test := range []struct{ verb, want string }{
		{"commit --vm %s", "--wait waits for it; virsh domjobabort, where it comes from, gives it up"},
		{"abort --vm %s", "libvirt takes its NICs back with it (virsh domjobabort " + guest},
		{"prepare --vm %s --bridge br0 --mac 52:54:00:00:01:07", "its hook prepares the NICs that the domain declares"},
		{"set --vm %s --nic net0 --link down", "it is down until vmnet commit --vm " + guest},
		{"detach --vm %s --nic net0", "it is prepared (vmnet abort --vm " + guest},
	} {
		args := strings.Fields(fmt.Sprintf(test.verb, guest))
		if out, err := h.vmnet(args...); err == nil || !strings.Contains(out, test.want) {
			h.Errorf("vmnet %s: %v: %s\nwant %s", strings.Join(args, " "), err, out, test.want)
		}
	}
	for verb, want := range map[string]string{"list": "prepared", "check": "no difference", "reconcile": ""} {
		if out, err := h.vmnet(verb); err != nil || !strings.Contains(out, want) {
			h.Errorf("vmnet %s: %v: %s\nwant %s", verb, err, out, want)
		}
	}
}
