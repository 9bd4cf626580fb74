package mangen

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"vmnet/internal/nstest"
)

const top = "../../.." // of the source tree

// pages runs the command of `make man`, and returns the text of each page by the name of its file.
func pages(t *testing.T) (dir string, all map[string]string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "man")
	cmd := exec.Command("go", "run", "-tags", "mangen", "./cmd/vmnet", "docs/man", dir)
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	all = map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(f)] = string(text)
	}
	return dir, all
}

func TestPages(t *testing.T) {
	dir, all := pages(t)
	sources, err := filepath.Glob(filepath.Join(top, "docs/man/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"vmnet.8", "vmnet-attach.8", "vmnet-bridge-create.8", "vmnet-list.8"}
	for _, s := range sources {
		want = append(want, strings.TrimSuffix(filepath.Base(s), ".md"))
	}
	for _, name := range want {
		if all[name] == "" {
			t.Errorf("there is no page %s", name)
		}
	}
	for name, text := range all {
		checkPage(t, name, text)
	}
	checkGroff(t, dir)
}

var heading = regexp.MustCompile(`(?m)^\.SH "?([A-Z ]+)"?$`)

// checkPage checks that a page has the common sections, in the common order.
func checkPage(t *testing.T, name, text string) {
	t.Helper()
	title, sect, _ := cutLast(name, ".")
	if !strings.Contains(text, `.TH "`+strings.ToUpper(title)+`" "`+sect+`" "2023-11-14" "`+source+`" `) {
		t.Errorf("%s: its .TH is not of %s(%s)", name, title, sect)
	}
	var found []string
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	rest := found
	for _, want := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"} {
		for len(rest) > 0 && rest[0] != want {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			t.Errorf("%s: no %s in its place among %q", name, want, found)
			return
		}
	}
}

// checkGroff checks that groff formats the pages without a warning.
func checkGroff(t *testing.T, dir string) {
	t.Helper()
	_, err := exec.LookPath("groff")
	nstest.Require(t, "groff", err == nil, "apt install groff-base")
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("groff",
		append([]string{"-man", "-t", "-Tutf8", "-ww", "-z"}, files...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

var longFlag = regexp.MustCompile(`(?m)^\s+(?:-\w, )?--([a-z][a-z-]*)`)

// TestOptionsAreTold checks that the pages have the options of the programs' help.
func TestOptionsAreTold(t *testing.T) {
	_, all := pages(t)
	for _, c := range []struct {
		page string
		run  []string
	}{
		{"vmnet-attach.8", []string{"./cmd/vmnet", "attach", "--help"}},
		{"vmnet-doctor.8", []string{"./cmd/vmnet", "doctor", "--help"}},
		{"qemu-netup.8", []string{"./cmd/qemu-netup-full", "--help"}},
	} {
		cmd := exec.Command("go", append([]string{"run"}, c.run...)...)
		cmd.Dir = top
		help, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, help)
		}
		flags := longFlag.FindAllStringSubmatch(string(help), -1)
		if len(flags) == 0 {
			t.Errorf("%v prints no options", cmd)
		}
		page := strings.ReplaceAll(all[c.page], `\-`, "-")
		for _, f := range flags {
			if !regexp.MustCompile(`--` + f[1] + `\b`).MatchString(page) {
				t.Errorf("%s lacks --%s", c.page, f[1])
			}
		}
	}
}

func TestMarkdown(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	for _, c := range []struct {
		name, text, wrong string
	}{
		{"a.conf.5", "% A.CONF 5\n\n# NAME\na.conf - text\n", ""},
		{"a.conf.5", "% \"A.CONF\" \"5\" \"Jan 2020\" \"x\"\n# NAME\na.conf - text\n", ""},
		{"a.conf.5", "% a.conf(5) | Files\n# NAME\na.conf - text\n", ""},
		{"a.conf.5", "# NAME\na.conf - text\n", ""},
		{"a.conf.5", "% OTHER 5\n# NAME\n", "its title is OTHER(5), want a.conf(5)"},
		{"a.conf.5", "% A.CONF 8\n# NAME\n", "its title is A.CONF(8), want a.conf(5)"},
		{"a", "", `page "a": want NAME.SECTION`},
	} {
		page, err := Markdown(c.name, []byte(c.text))
		if c.wrong != "" {
			if err == nil || err.Error() != c.wrong {
				t.Errorf("%q: %v, want %s", c.text, err, c.wrong)
			}
			continue
		}
		if err != nil || !bytes.Contains(page,
			[]byte(`.TH "A.CONF" "5" "2023-11-14" "`+source+`" "File Formats Manual"`)) ||
			!bytes.Contains(page, []byte(".SH NAME")) {
			t.Errorf("%q: %v\n%s", c.text, err, page)
		}
	}
}

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain":       "plain",
		".dot":        `\&.dot`,
		"'quote'":     `\(aqquote\(aq`,
		`a\b --c`:     `a\eb \-\-c`,
		"~/x ^ `cmd`": "\\(ti/x \\(ha \\(gacmd\\(ga",
	} {
		if got := line(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
