package doctor

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseCaps(t *testing.T) {
	// The attributes that setcap(8) of libcap 2.66 writes for cap_net_admin+ep, for +p, and with -n
	// 1000.
	ep := "\x01\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	p := "\x00\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	ns := "\x01\x00\x00\x03\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x00\x00"
	for in, want := range map[string]string{
		ep: "cap_net_admin+ep",
		p:  "cap_net_admin+p",
		ns: "cap_net_admin+ep in the user namespace of uid 1000",
		"\x01\x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00":                                 "1+ep",
		"\x01\x00\x00\x02\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00": "1,32+ep",
	} {
		caps, err := parseCaps([]byte(in))
		if err != nil || caps.String() != want {
			t.Errorf("%x: %s, %v, want %s", in, caps, err, want)
		}
	}
	for _, in := range []string{"", "\x01", "\x01\x00\x00\x02", ep + "\x00", "\x01\x00\x00\x04" + ep[4:]} {
		if caps, err := parseCaps([]byte(in)); err == nil {
			t.Errorf("%x is taken for %s", in, caps)
		}
	}
}

func FuzzParseCaps(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		caps, err := parseCaps(b)
		if err == nil && caps.has(unix.CAP_NET_ADMIN) != (b[5]&0x10 != 0) {
			t.Errorf("%x: %s", b, caps)
		}
	})
}
