package capture

import (
	"testing"

	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func FuzzReader(f *testing.F) {
	h := make([]byte, headLen, maxRecord)
	h[0], h[6], h[7] = kindFrame, 4, offload.HeaderLen
	f.Add(h)
	h[24] = 60
	f.Add(append(append(h, "full"...), make([]byte, offload.HeaderLen+60)...))
	h[0] = kindTotals
	f.Add(h[:headLen])
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &Reader{totals: map[[2]int]*totals{}}
		got, frame, err := r.parse(b)
		if err == nil && frame && (len(got.Data) > got.Length || len(got.Reason) > MaxReason ||
			got.Port >= vport.MaxPorts) {
			t.Errorf("%x: %+v", b, got)
		}
		for _, n := range r.Totals() {
			if err == nil && frame && n.Lost > n.Seen {
				t.Errorf("%x: %+v", b, n)
			}
		}
	})
}
