package inbound

import (
	"encoding/json"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestParseRule(t *testing.T) {
	for text, want := range map[string]string{ // an empty one is text itself
		"tcp:22": "", "udp:5000-5010": "", "icmp": "", "any": "", "answers": "",
		"tcp:22,from=10.0.0.0/8": "", "any,from=2001:db8::/64": "", "icmp,from=192.0.2.7": "",
		"tcp:22,from=192.0.2.7/32": "tcp:22,from=192.0.2.7", "tcp:22-22": "tcp:22", "tcp:1-65535": "",
		"tcp:22,from=0.0.0.0/0": "", "tcp:22,from=::/0": "",
	} {
		r, err := ParseRule(text)
		if want == "" {
			want = text
		}
		if err != nil || r.String() != want {
			t.Errorf("%s: %s, %v, want %s", text, r, err, want)
		}
	}
	for text, want := range map[string]string{
		"": "want tcp:PORT", "sctp:1": "want tcp:PORT", "tcp": "want its ports", "udp,from=10.0.0.0/8": "want its ports",
		"tcp:": "port \"\"", "tcp:0": "port \"0\"", "tcp:65536": "port", "tcp:+22": "port", "tcp:022": "port",
		"tcp:22-": "port", "tcp:22-21": "lower number first", "tcp:0-22": "port", "icmp:8": "no ports", "any:1": "no ports",
		"tcp:22,from=": "want a network", "tcp:22,from=10.0.0.1/8": "write 10.0.0.0/8", "tcp:22,to=10.0.0.0/8": "port",
		"tcp:22,from=fe80::1%eth0": "want a network", "tcp:22,from=::ffff:10.0.0.1": "want a network",
		"answers,from=10.0.0.0/8": "without from", "answers:1": "no ports", "TCP:22": "want tcp:PORT",
		"tcp:22,from=10.0.0.0/8,from=10.0.0.0/8": "want a network",
	} {
		if r, err := ParseRule(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", text, r, err, want)
		}
	}
}

// rules parses rules separated by spaces.
func rules(t *testing.T, text string) (all Rules) {
	t.Helper()
	for _, word := range strings.Fields(text) {
		r, err := ParseRule(word)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// TestEncode: an alias and JSON give the rules back, whatever their order.
func TestEncode(t *testing.T) {
	for _, text := range []string{"", "answers", "tcp:80 tcp:22,from=10.0.0.0/8 any,from=2001:db8::/64"} {
		want := rules(t, text)
		var got, again Rules
		want.Encode(func(key, value string) {
			if value != "" && !got.Set(key, value) {
				t.Errorf("%s=%s is not set", key, value)
			}
		})
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &again); err != nil || !got.Equal(want) || !again.Equal(want) {
			t.Errorf("%s: %s, %s, %v", want, got, again, err)
		}
	}
	var r Rules
	for _, bad := range []string{"", "x", "tcp:22;tcp:22", "answers;tcp:22", "tcp:22;", strings.Repeat("icmp;", 17)} {
		if r.Set("in", bad) {
			t.Errorf("%q was taken: %s", bad, r)
		}
	}
	if !r.Set("other", "x") {
		t.Error("another key was refused")
	}
}

func TestCovers(t *testing.T) {
	for _, tc := range []struct {
		rule, other string
		want        bool
	}{
		{"tcp:22", "tcp:22", true},
		{"tcp:22", "tcp:22,from=10.0.0.0/8", true},
		{"tcp:22,from=10.0.0.0/8", "tcp:22", false},
		{"tcp:22,from=10.0.0.0/8", "tcp:22,from=10.1.0.0/16", true},
		{"tcp:22,from=10.1.0.0/16", "tcp:22,from=10.0.0.0/8", false},
		{"tcp:22,from=0.0.0.0/0", "tcp:22,from=2001:db8::/64", false},
		{"tcp:1-1024", "tcp:22-80", true},
		{"tcp:22-80", "tcp:22-81", false},
		{"tcp:22", "udp:22", false},
		{"any", "icmp", true},
		{"icmp", "any", false},
		{"tcp:22", "answers", true},
		{"answers", "tcp:22", false},
	} {
		if got := rules(t, tc.rule)[0].Covers(rules(t, tc.other)[0]); got != tc.want {
			t.Errorf("%s covers %s: %v", tc.rule, tc.other, got)
		}
	}
}
