package tapmgr_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// neighbour is a port of the logical network without a guest: an internal port of br-int in the
// host's own namespace, which has the port's address.
func (c *chassis) neighbour(p logical) *netns.NS {
	c.Helper()
	c.Vsctl("--timeout=30", "add-port", "br-int", "near0", "--", "set", "Interface", "near0", "type=internal",
		"external_ids:iface-id="+p.id)
	c.ip("link", "set", "near0", "address", p.mac, "mtu", "1442", "up")
	c.ip("addr", "add", p.ip+"/24", "dev", "near0")
	c.ip("route", "add", "10.0.0.0/8", "via", p.router)
	return c.ns
}

// binding is where OVN has a logical port: its chassis, the further ones, and those of the further
// ones that its guest has been heard on.
func binding(v *ovstest.OVN, p logical) string {
	names := map[string]string{}
	for _, name := range []string{"hv1", "hv2"} {
		names[v.Sbctl("--bare", "--columns=_uuid", "find", "Chassis", "name="+name)] = name
	}
	var on []string
	for _, column := range []string{"chassis", "additional_chassis"} {
		found := v.Sbctl("--bare", "--columns="+column, "find", "Port_Binding", "logical_port="+p.id)
		on = append(on, column+" "+names[found])
	}
	heard := v.Sbctl("--bare", "--columns=options", "find", "Port_Binding", "logical_port="+p.id)
	for option := range strings.FieldsSeq(heard) {
		if who, ok := strings.CutPrefix(option, "additional-chassis-activated="); ok {
			on = append(on, "activated "+who)
		}
	}
	return strings.Join(on, ", ")
}

// TestLiveOVNMigrate migrates a guest that answers a ping each 10 ms to another chassis. OVN has
// its port on both meanwhile, and passes nothing of the further one before the commit announces the
// guest there. The guest keeps its address, and OVN its port security.
func TestLiveOVNMigrate(t *testing.T) {
	t.Parallel()
	v := ovstest.NewOVN(t)
	makeLogical(v)
	one, two := newChassis(t, v, false)
	near := one.neighbour(g2)
	source := one.booted(testvm.Config{Name: "S", ExtraArgs: migratable})
	if got := one.plug(source, g1); !strings.HasPrefix(got, "lease "+g1.ip) {
		t.Fatal(got)
	}
	g := two.target()
	spec := two.spec(g, g1)
	spec.Prepared = true
	v.Nbctl("lsp-set-options", g1.id, "requested-chassis=hv1,hv2", "activation-strategy=rarp")
	res, err := two.Prepare(two.context(20*time.Second), spec)
	if err != nil || res.NIC.State != nic.Prepared || !slices.ContainsFunc(res.Notices, func(n string) bool {
		return strings.Contains(n, "requested-chassis of g1")
	}) {
		t.Fatalf("prepared %+v, %v", res, err)
	}
	if err := two.WaitForwarding(two.context(30*time.Second), res.NIC); err != nil {
		t.Fatal(err)
	}
	bound := func(want string) {
		t.Helper()
		nstest.Eventually(t, 30*time.Second, "g1 is on "+want, func() bool { return binding(v, g1) == want })
	}
	bound("chassis hv1, additional_chassis hv2")

	p := two.migrated(near, g1.ip, source, g)
	bound("chassis hv1, additional_chassis hv2, activated hv2")
	v.Nbctl("lsp-set-options", g1.id, "requested-chassis=hv2")
	bound("chassis hv2, additional_chassis ")
	if err := source.Kill(); err != nil {
		t.Fatal(err)
	}
	tap, _ := nic.InterfaceName(source.name, "net0")
	one.gone(tap)
	if _, err := one.Reconcile(one.context(20*time.Second), false); err != nil {
		t.Fatal(err)
	}
	p.answered(p.sent.Load() + 50)
	p.stop()
	t.Logf("the guest did not answer for %.0f ms at most, and not to %d of %d requests",
		p.gap(), p.missing(), p.sent.Load())
	if ports := one.Vsctl("list-ports", "br-int"); strings.Contains(ports, tap) {
		t.Errorf("the row of the source is left: %q", ports)
	}
	// The target claims it as a further chassis, and as the only one. ovn-controller may log a
	// claim again until the database confirms it. Hosts that fight for a port both claim it twice a
	// second.
	if n := two.claims(g1); one.claims(g1) != 1 || n < 2 || n > 4 {
		t.Errorf("hosts claimed the guest's port %d and %d times", one.claims(g1), two.claims(g1))
	}
	two.wants("migrated", two.sh(g, "ip -4 -o addr show scope global | grep -o 'inet [0-9.]*'", ""), "inet "+g1.ip)
	if two.foreignPasses(g) {
		t.Error("port security lets another source address pass")
	}
	v.Nbctl("lsp-set-port-security", "g1")
	nstest.Eventually(t, 30*time.Second, "another address passes without port security", func() bool {
		return two.foreignPasses(g)
	})
	for _, c := range []*chassis{one, two} {
		if got := c.check(); len(got) > 0 {
			t.Errorf("check finds %+v", got)
		}
	}
}
