package console

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQuote(t *testing.T) {
	got := Quote([]string{"qemu", "a b", "", "it's", "$x", "a=b,c:d/e", "*", "~"})
	if want := `qemu 'a b' '' 'it'\''s' '$x' a=b,c:d/e '*' '~'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A real shell is the reference.
func TestShellReadsItBack(t *testing.T) {
	argv := []string{
		"-netdev", "tap,id=n,fds=3:4", "", "a  b\t", "it's", "$HOME `id`", "*", "~", "\\", "line\nline",
		"é\xff", "#", "a=b", "--", "!",
	}
	cmd := exec.Command("sh", "-c", `eval "set -- $ARGS"; for a; do printf '%s\0' "$a"; done`)
	cmd.Env = []string{"ARGS=" + Quote(argv), "HOME=/"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(argv, strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
