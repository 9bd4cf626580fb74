package evpn

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
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
		a := Answer{running: c.running}
		if c.running {
			a = answer(t, c.segments, c.peers)
		}
		s := a.Of(c.vni)
		trouble, cure := s.Trouble(c.vni)
		if !strings.Contains(s.String(), c.text) || !strings.Contains(trouble, c.trouble) ||
			(trouble == "") != (c.trouble == "") || (trouble == "") != (cure == "") {
			t.Errorf("VNI %d: %q, %q (%s), want %q, %q", c.vni, s, trouble, cure, c.text, c.trouble)
		}
	}
}

func answer(t *testing.T, segments, peers string) Answer {
	t.Helper()
	a := Answer{running: true}
	if err := errors.Join(a.readSegments([]byte(segments)), a.readPeers([]byte(peers))); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestSegments: of several segments, those with the same trouble are named together.
func TestSegments(t *testing.T) {
	known := map[int]string{}
	for vni := range 10 {
		known[vni+1] = `{"numMacs":2,"remoteVteps":["192.0.2.2"]}`
	}
	all := func(vnis map[int]string) string {
		var parts []string
		for vni, text := range vnis {
			parts = append(parts, fmt.Sprintf("%q:%s", strconv.Itoa(vni), text))
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	lonely := maps.Clone(known)
	lonely[3] = `{"numMacs":1,"remoteVteps":[]}`
	for _, c := range []struct {
		segments, peers string
		vnis            []int
		text, trouble   string
	}{
		{all(known), peersJSON, []int{1, 2}, "announces 2 of 2 VNIs, 4 MACs, 1 remote hosts, 1 of 2 neighbors", ""},
		{all(known), peersJSON, []int{21, 22}, "announces 0 of 2 VNIs", "FRR announces none of its VNIs"},
		{
			all(known), peersJSON,
			[]int{1, 26, 25, 24, 23, 22, 21},
			"announces 1 of 7",
			"FRR does not announce VNI 21, 22, 23, 24 and 2 more",
		},
		{all(lonely), peersJSON, []int{1, 3}, "3 MACs, 1 remote", "no other host announces VNI 3"},
		{all(known), "{}", []int{1, 2}, "0 of 0 neighbors", "FRR has no neighbor"},
	} {
		s := answer(t, c.segments, c.peers).OfAll(c.vnis)
		trouble, cure := s.Trouble()
		if !strings.Contains(s.String(), c.text) || trouble != c.trouble && !strings.HasPrefix(trouble, c.trouble) ||
			(trouble == "") != (c.trouble == "") || (trouble == "") != (cure == "") {
			t.Errorf("%v: %q, %q (%s), want %q, %q", c.vnis, s, trouble, cure, c.text, c.trouble)
		}
	}
	if s := (Answer{}).OfAll([]int{1}); s.String() != "does not run" {
		t.Errorf("%q", s)
	}
}

// FuzzRead: FRR's words may be anything; what is not an address is left out.
func FuzzRead(f *testing.F) {
	f.Add(segmentsJSON, peersJSON, 100)
	f.Add(`{"1":{"remoteVteps":["\u001b[2J"]}}`, `{"peers":[]}`, 1)
	f.Fuzz(func(t *testing.T, segments, peers string, vni int) {
		var a Answer
		if a.readSegments([]byte(segments)) != nil || a.readPeers([]byte(peers)) != nil {
			return
		}
		s := a.Of(vni)
		for _, a := range s.Remotes {
			if strings.ContainsAny(a, "\x1b\n ") {
				t.Errorf("%q", a)
			}
		}
		_, _ = s.Trouble(vni)
		_ = s.String()
		all := a.OfAll([]int{vni, vni + 1})
		_, _ = all.Trouble()
		_ = all.String()
	})
}
