package evpn

import (
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// Of FRR 8.4.4.
const (
	segmentsJSON = `{"100":{"vni":100,"type":"L2","vxlanIf":"vx100","numMacs":2,"numArpNd":0,"numRemoteVteps":1,
		"tenantVrf":"default","remoteVteps":["192.168.60.2"]},
		"200":{"vni":200,"type":"L2","numMacs":0,"numRemoteVteps":0,"remoteVteps":[]}}`
	peersJSON = `{"routerId":"192.168.60.1","as":65000,"peers":{"192.168.60.2":{"state":"Established","pfxRcd":2},
		"192.168.60.3":{"state":"Active"}},"failedPeers":1}`
)

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		running         bool
		vni             int
		segments, peers string
		text, trouble   string
	}{
		{false, 100, "", "", "does not run", "does not run"},
		{
			true, 100, segmentsJSON, peersJSON,
			"announces the segment, 2 MACs, 1 remote hosts, 1 of 2 neighbors connected", "",
		},
		{true, 999, segmentsJSON, peersJSON, "does not announce the segment, 1 of 2", "does not announce VNI 999"},
		{true, 200, segmentsJSON, peersJSON, "0 MACs, 0 remote hosts", "no other host announces VNI 200"},
		{true, 100, segmentsJSON, "{}", "0 of 0 neighbors", "no neighbor for EVPN"},
		{true, 100, segmentsJSON, `{"peers":{"a":{"state":"Idle"}}}`, "0 of 1 neighbors", "connected to no neighbor"},
	} {
		s := Status{Running: c.running}
		if c.running {
			if err := s.readSegment([]byte(c.segments), c.vni); err != nil {
				t.Fatal(err)
			}
			if err := s.readPeers([]byte(c.peers)); err != nil {
				t.Fatal(err)
			}
		}
		trouble, cure := s.Trouble(c.vni)
		if !strings.Contains(s.String(), c.text) || !strings.Contains(trouble, c.trouble) ||
			(trouble == "") != (c.trouble == "") || (trouble == "") != (cure == "") {
			t.Errorf("VNI %d: %q, %q (%s), want %q, %q", c.vni, s, trouble, cure, c.text, c.trouble)
		}
	}
}

// FuzzRead: FRR's words may be anything; what is not an address is left out.
func FuzzRead(f *testing.F) {
	f.Add(segmentsJSON, peersJSON, 100)
	f.Add(`{"1":{"remoteVteps":["\u001b[2J"]}}`, `{"peers":[]}`, 1)
	f.Fuzz(func(t *testing.T, segments, peers string, vni int) {
		var s Status
		if s.readSegment([]byte(segments), vni) != nil || s.readPeers([]byte(peers)) != nil {
			return
		}
		for _, a := range s.Remotes {
			if strings.ContainsAny(a, "\x1b\n ") {
				t.Errorf("%q", a)
			}
		}
		_, _ = s.Trouble(vni)
		_ = s.String()
	})
}
