package version

import (
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestNumber(t *testing.T) {
	if !regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$`).MatchString(Number) {
		t.Errorf("%q is not a semver.org version", Number)
	}
}

func TestText(t *testing.T) {
	const hash = "0123456789abcdef0123456789abcdef01234567"
	vcs := func(kv ...string) (settings []debug.BuildSetting) {
		for i := 0; i < len(kv); i += 2 {
			settings = append(settings, debug.BuildSetting{Key: kv[i], Value: kv[i+1]})
		}
		return settings
	}
	for _, c := range []struct {
		archived string
		settings []debug.BuildSetting
		want     string
	}{
		{"$Format:%H %ct$\n", nil, ""},
		{"$Format:%H %ct$\n", vcs("vcs.revision", hash), "(commit 0123456789ab) "},
		{"$Format:%H %ct$\n", vcs("vcs.revision", hash, "vcs.modified", "true"), "(commit 0123456789ab, modified) "},
		{hash + " 1700000000\n", nil, "(commit 0123456789ab) "},
		// unpacked into another repository
		{hash + " 1700000000\n", vcs("vcs.revision", strings.Repeat("f", 40)), "(commit ffffffffffff) "},
		{"", nil, ""},
	} {
		want := "prog " + Number + " " + c.want + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
		if got := of(c.archived, c.settings).text("prog"); got != want {
			t.Errorf("%q, %v: %q, want %q", c.archived, c.settings, got, want)
		}
	}
}
