package metrics

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"vmnet/internal/leaktest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var update = flag.Bool("update", false, "write the golden file")

// hostileName is one that would end a label, a line or the file if it was not escaped.
const hostileName = "P\"4\\\n# TYPE x counter\n\xff"

func example() []tapmgr.Sighting {
	return []tapmgr.Sighting{
		{NIC: nic.NIC{VM: "P2", ID: "net0", Interface: "P2-net0", UID: 1000, State: nic.Unknown}}, // only claimed
		{
			NIC: nic.NIC{
				VM: "P2", ID: "net0", Interface: "P2-net0", Type: nic.TypeTap, Source: "br0", Network: "lab", Queues: 2,
				MAC: "52:54:00:00:00:01", Model: "virtio-net-pci", State: "forwarding", PID: 100,
			},
			Addresses: []nic.Address{
				{IP: netip.MustParseAddr("10.0.0.2")},
				{IP: netip.MustParseAddr("fd00::2")},
				{IP: netip.MustParseAddr("fe80::2")},
			},
			Traffic: &nic.Traffic{
				FromGuest: nic.Direction{Packets: 1, Bytes: 1 << 53, Errors: 3, Dropped: 4},
				ToGuest:   nic.Direction{Packets: 5, Bytes: 6, Errors: 7, Dropped: 8},
			},
			Drops: map[string]uint64{"spoofed MAC": 9, "spoofed IPv4 address": 10},
		},
		{NIC: nic.NIC{VM: hostileName, ID: "net0", Interface: "x", Type: nic.TypeSocket, State: nic.NoSwitch}},
		{NIC: nic.NIC{Interface: "lan0", Type: nic.TypeMacvlan, Source: "eth0", State: nic.Up}},
	}
}

func exampleText(t *testing.T) []byte {
	t.Helper()
	all := append(About("0.1.0", 1500*time.Microsecond, false),
		NICs(example(), map[int]time.Duration{100: 2500 * time.Millisecond})...)
	var b bytes.Buffer
	if err := Write(&b, all); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestText(t *testing.T) {
	const golden = "testdata/example.prom"
	got := exampleText(t)
	if *update {
		if err := os.WriteFile(golden, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if diff := cmp.Diff(string(want), string(got)); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// TestLint is what promtool check metrics does.
func TestLint(t *testing.T) {
	problems, err := promlint.New(bytes.NewReader(exampleText(t))).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// TestDocuments: the dashboard and the list of metrics name only metrics that exist, and the list
// names all.
func TestDocuments(t *testing.T) {
	known := string(exampleText(t))
	for _, path := range []string{"../../docs/grafana/vmnet.json", "../../docs/metrics.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.FieldsFunc(string(text), func(r rune) bool {
			return r != '_' && (r < 'a' || r > 'z')
		}) {
			if strings.HasPrefix(word, "vmnet_") && !strings.Contains(known, "# TYPE "+word+" ") {
				t.Errorf("%s: there is no metric %s", path, word)
			}
		}
		for line := range strings.Lines(known) {
			if f := strings.Fields(line); f[0] == "#" && f[1] == "TYPE" && strings.HasSuffix(path, ".md") &&
				!strings.Contains(string(text), "`"+f[2]+"`") {
				t.Errorf("%s does not name %s", path, f[2])
			}
		}
	}
}
