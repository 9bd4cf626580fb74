package portrate

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestParseLimit(t *testing.T) {
	for text, want := range map[string]string{
		"100M": "100M", "100m": "100M", "100Mbit": "100M", "100Mbit/s": "100M", "1000k": "1M", "2.5G": "2500M",
		"64000": "64k", "64001": "64001", "20kpps": "20kpps", "500pps": "500pps", "1T": "1T",
		"100M,20kpps": "100M,20kpps", "20kpps,100M": "100M,20kpps", "none": "none",
	} {
		l, err := ParseLimit(text)
		if err != nil || l.String() != want {
			t.Errorf("%q: %v, %v", text, l, err)
		}
		if again, err := ParseLimit(l.String()); err != nil || again != l {
			t.Errorf("%q: %v, %v", l.String(), again, err)
		}
	}
	for _, text := range []string{
		"", "0", "-1M", "63k", "2T", "99pps", "1.1Gpps", "100Mbps", "100MBps", "100M,1G", "100M,", "1e9",
		"NaN", "inf", "100 M", "0x10M", "M", "kpps", "99999999999999999999T", "1..5M",
	} {
		if l, err := ParseLimit(text); err == nil {
			t.Errorf("%q: %v", text, l)
		}
	}
}

func TestParseBurst(t *testing.T) {
	for text, want := range map[string]uint64{
		"16k": 16384, "256KB": 256 << 10, "1M": 1 << 20, "1G": 1 << 30, "20000": 20000,
	} {
		n, err := ParseBurst(text)
		if err != nil || n != want {
			t.Errorf("%q: %d, %v", text, n, err)
		}
		if again, err := ParseBurst(FormatBurst(n)); err != nil || again != n {
			t.Errorf("%q: %d, %v", FormatBurst(n), again, err)
		}
	}
	for _, text := range []string{"", "0", "15k", "2G", "-1", "1.5M", "k", "4294967296k", "99999999999999999999"} {
		if n, err := ParseBurst(text); err == nil {
			t.Errorf("%q: %d", text, n)
		}
	}
}

func TestConfig(t *testing.T) {
	c := Config{Up: Limit{Bits: 1e8, Packets: 2e4}, Down: Limit{Bits: 1e9}, Burst: 256 << 10}
	const want = `{"up":"100M,20kpps","down":"1G","burst":262144}`
	text, err := json.Marshal(c)
	if err != nil || string(text) != want || c.String() != "rate-up:100M,20kpps;rate-down:1G;burst:256k" {
		t.Errorf("%s, %v, %s", text, err, c)
	}
	var back Config
	if err := json.Unmarshal(text, &back); err != nil || back != c || back.Validate() != nil {
		t.Errorf("%v, %v", back, err)
	}
	shaped := c
	if !shaped.Set("shape", "yes") || shaped.Set("shape", "no") {
		t.Error("a word of an alias for shaping")
	}
	shaped.Shape = true
	if text := shaped.String(); !strings.HasSuffix(text, ";burst:256k;shape:yes") || shaped.Validate() != nil {
		t.Errorf("shaped: %s, %v", text, shaped.Validate())
	}
	if text, err := json.Marshal(Config{}); err != nil || string(text) != "{}" {
		t.Errorf("%s, %v", text, err)
	}
	for _, bad := range []Config{
		{Burst: 256 << 10},
		{Burst: 256 << 10, Up: Limit{Packets: 1000}},
		{Burst: 1, Up: Limit{Bits: 1e8}},
		{Shape: true},
		{Shape: true, Down: Limit{Packets: 1000}},
		{Up: Limit{Bits: 1}},
		{Down: Limit{Packets: 2e9}},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

func TestWithin(t *testing.T) {
	most := Limit{Bits: 1e8}
	for _, tc := range []struct{ asked, want Limit }{
		{Limit{}, Limit{Bits: 1e8}},
		{Limit{Bits: 1e9, Packets: 1000}, Limit{Bits: 1e8, Packets: 1000}},
		{Limit{Bits: 1e7}, Limit{Bits: 1e7}},
	} {
		if got := tc.asked.Within(most); got != tc.want {
			t.Errorf("%v within %v: %v", tc.asked, most, got)
		}
	}
}

// TestWire: full segments of TCP have the bytes of frames that are not joined.
func TestWire(t *testing.T) {
	for _, tc := range []struct{ length, segment, bytes, frames int }{
		{1514, 0, 1514, 1},
		{66 + 45*1448, 1448, 45 * 1514, 45},
		{66 + 45*1448 + 500, 1448, 45*1514 + 566, 46},
		{54 + 44*1460, 1460, 44*1514 + 43*12, 44},
		{1000, 1448, 1000, 1},
		{60, 1, 60, 1},
		{1086, 1, 1086 + 999*256, 1000},
	} {
		if bytes, frames := Wire(tc.length, tc.segment); bytes != tc.bytes || frames != tc.frames {
			t.Errorf("%+v: %d bytes, %d frames", tc, bytes, frames)
		}
	}
}

// TestBucket: a default burst lasts for as long at each rate, and has room for super-frames.
func TestBucket(t *testing.T) {
	for bits, want := range map[uint64]time.Duration{
		1e6: 1048576 * time.Microsecond, 1e9: defaultDepth, 1e10: defaultDepth,
	} {
		b := Config{Up: Limit{Bits: bits}}.UpBucket()
		if d := b.BitDepth(); d != want || b.Burst < 128<<10 {
			t.Errorf("%d bit/s: %v, %d bytes", bits, d, b.Burst)
		}
	}
	if b := (Config{Down: Limit{Bits: 1e12}}).DownBucket(); b.Burst != MaxBurst {
		t.Error(b)
	}
}
