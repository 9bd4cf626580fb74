package offload

import (
	"bytes"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestHeaderBytes(t *testing.T) {
	want := []byte{1, 0x81, 0x42, 0, 0xa8, 5, 34, 0, 16, 0}
	h, ok := Parse(want)
	if (h != Header{NeedsCsum, GSOTCPv4 | GSOECN, 66, 1448, 34, 16}) || !ok {
		t.Errorf("Parse = %+v, %v", h, ok)
	}
	got := make([]byte, HeaderLen)
	if h.Put(got); !bytes.Equal(got, want) {
		t.Errorf("Put = %v, want %v", got, want)
	}
	if _, ok := Parse(want[:9]); ok {
		t.Error("9 bytes were parsed")
	}
}
