package hook

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"vmnet/internal/inventory"
	"vmnet/internal/leaktest"
	"vmnet/libvirt/domainxml"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestRead(t *testing.T) {
	got, err := Read([]string{"web", "release", "end", "shutdown"}, strings.NewReader("<domain/>"), 7)
	if want := (Call{"web", "release", "end", "<domain/>", 7}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	endless, err := Read([]string{"web", "prepare", "begin", "-"}, endlessReader{}, 7)
	if err != nil || len(endless.XML) != maxXML {
		t.Errorf("%d bytes, %v", len(endless.XML), err)
	}
	wrong := errors.New("wrong")
	if _, err := Read([]string{"web", "prepare", "begin", "-"}, iotest.ErrReader(wrong), 7); !errors.Is(err, wrong) {
		t.Error(err)
	}
	for _, args := range [][]string{nil, {"web"}, {"web", "prepare", "begin", "-", "-"}} {
		if got, err := Read(args, strings.NewReader(""), 7); err == nil {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) { return len(p), nil }

var _ io.Reader = endlessReader{}

// TestConcerns: a guest is ours by its metadata or by the alias of a NIC, an operation by what it
// does.
func TestConcerns(t *testing.T) {
	const metadata, alias = `<vmnet:nics xmlns:vmnet="urn:vmnet:nics:1"/>`, `<alias name='ua-vmnet-net0'/>`
	for _, test := range []struct {
		op, subOp, xml        string
		concerns, mustSucceed bool
	}{
		{"prepare", "begin", metadata, true, true},
		{"prepare", "begin", alias, true, true},
		{"prepare", "begin", "<alias name='ua-net0'/>", false, true},
		{"prepare", "end", metadata, false, false},
		{"start", "begin", metadata, true, true},
		{"started", "begin", metadata, true, true},
		{"reconnect", "begin", metadata, true, false},
		{"stopped", "end", metadata, false, true},
		{"release", "end", alias, true, true},
		{"migrate", "begin", metadata, true, true},
		{"restore", "begin", metadata, false, true},
		{"attach", "begin", metadata, false, true},
		{"", "", metadata, false, false},
		{"later", "begin", metadata, false, false},
	} {
		c := Call{Guest: "web", Op: test.op, SubOp: test.subOp, XML: test.xml}
		if c.Concerns() != test.concerns || c.MustSucceed() != test.mustSucceed {
			t.Errorf("%s %s with %s: %v, %v", test.op, test.subOp, test.xml, c.Concerns(), c.MustSucceed())
		}
		if test.concerns || test.xml != metadata {
			continue
		}
		if done, err := c.Run(t.Context(), nil); err != nil || done.Notes != nil || done.Awaits {
			t.Errorf("%s %s: %+v, %v", test.op, test.subOp, done, err)
		}
	}
}

func TestExplain(t *testing.T) {
	def, err := domainxml.Parse(`<domain type='qemu'><name>web</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid>
<metadata><v:nics xmlns:v="urn:vmnet:nics:1"><v:nic id="net0" macvtap="eth0"/><v:nic id="net1" bridge="br0" vlan="7"/>
<v:nic id="net2" macvtap="eth1" mode="vepa"/></v:nics></metadata>
<devices><interface type='ethernet'><mac address='52:54:00:00:00:01'/><target dev='web-0' managed='no'/><alias name='ua-vmnet-net0'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:02'/><alias name='ua-vmnet-net1'/></interface>
<interface type='direct'><mac address='52:54:00:00:00:03'/><source dev='eth1' mode='bridge'/><alias name='ua-vmnet-net2'/></interface></devices></domain>`)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Explain(def)
	if err != nil {
		t.Fatal(err)
	}
	// A macvtap has nothing that could be finished once QEMU runs. Two devices are libvirt's,
	// without a name.
	does := map[string]string{}
	for _, op := range e.Operations {
		if len(op.Does) > 0 {
			does[op.Op] = strings.Join(op.Does, "|")
		}
	}
	want := map[string]string{
		"migrate begin": "keep web-0 down until the guest has arrived; then raise it, and announce the guest" +
			"|keep the tap for 52:54:00:00:00:02 down until the guest has arrived; then raise it, and announce the guest" +
			"|keep the macvtap for 52:54:00:00:00:03 down until the guest has arrived; then raise it, and announce the guest",
		"prepare begin": "make macvtap web-0 on eth0, mode bridge, for 52:54:00:00:00:01|make sure that libvirt can make the tap for 52:54:00:00:00:02" +
			"|make sure that libvirt can make the macvtap for 52:54:00:00:00:03",
		"start begin": "put the tap for 52:54:00:00:00:02, which libvirt has made, on bridge br0, port vlan:7" +
			"|set up the macvtap for 52:54:00:00:00:03, which libvirt has made on eth1: mode vepa",
		"started begin":   "check that the tap for 52:54:00:00:00:02 ends with QEMU and is on bridge br0; log it if not",
		"reconnect begin": "check that the tap for 52:54:00:00:00:02 ends with QEMU and is on bridge br0; log it if not",
		"release end":     "remove the guest's devices that no process holds",
	}
	if n := e.NICs[1]; n.Made || n.Source != "br0" || n.Interface != "" {
		t.Errorf("%+v", n)
	}
	if fmt.Sprint(does) != fmt.Sprint(want) || len(e.Operations) != len(operations) {
		t.Errorf("%v, want\n%v", does, want)
	}
}

// TestArrivals: a guest arrives from when libvirt says so, until it is forgotten or too much time
// has passed, and never by a note that cannot be read.
func TestArrivals(t *testing.T) {
	a := arrivals(t.TempDir() + "/arriving")
	uuid, err := domainxml.ParseUUID("00112233-4455-6677-8899-aabbccddeeff")
	if err != nil {
		t.Fatal(err)
	}
	has := func(what string, want bool) {
		t.Helper()
		if got, err := a.has(uuid); got != want || err != nil {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	has("nothing was said", false)
	if err := a.forget(uuid); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := a.expect(uuid); err != nil {
			t.Fatal(err)
		}
		has("expected", true)
	}
	if got, err := a.has(domainxml.UUID{}); got || err != nil {
		t.Errorf("another guest: %v, %v", got, err)
	}
	now := inventory.SinceBoot()
	for since, want := range map[int64]bool{
		now - int64(arrivingFor.Seconds()) + 30: true, now - int64(arrivingFor.Seconds()): false, now + 1000: false,
	} {
		if err := os.WriteFile(a.file(uuid), []byte(fmt.Sprintln(since)), 0o600); err != nil {
			t.Fatal(err)
		}
		has(fmt.Sprintf("%d s ago", now-since), want)
	}
	if err := os.WriteFile(a.file(uuid), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := a.has(uuid); got || err == nil {
		t.Errorf("an empty note: %v, %v", got, err)
	}
	if err := a.forget(uuid); err != nil {
		t.Error(err)
	}
	has("forgotten", false)
}
