package bridgeconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// A verdict is a possible answer of QEMU's helper and of this package.
type verdict string

const (
	allowed verdict = "allowed"
	denied  verdict = "denied"
	broken  verdict = "broken" // the main file cannot be used
)

// cases are files, in which DIR stands for their directory, and the verdict for br0. QEMU's helper
// reads all of them too (TestLiveQEMU).
var cases = []struct {
	name  string
	main  string
	files map[string]string
	want  verdict
}{
	{"empty", "", nil, denied},
	{"allow", "allow br0\n", nil, allowed},
	{"no newline", "allow br0", nil, allowed},
	{"another", "allow br1\n", nil, denied},
	{"prefix", "allow br\nallow br00\n", nil, denied},
	{"case", "allow BR0\n", nil, denied},
	{"all", "allow all\n", nil, allowed},
	{"all in capitals", "allow ALL\n", nil, denied},
	{"deny after allow", "allow br0\ndeny br0\n", nil, denied},
	{"deny before allow", "deny br0\nallow br0\n", nil, denied},
	{"deny beats all", "deny br0\nallow all\n", nil, denied},
	{"deny all beats", "allow br0\ndeny all\n", nil, denied},
	{"deny another", "deny br1\nallow all\n", nil, allowed},
	{"tab", "allow\tbr0\n", nil, allowed},
	{"tabs and spaces around", " \t allow \t br0 \t \n", nil, allowed},
	{"tab then trailing space", "allow\tbr0 \n", nil, broken},
	{"two tabs", "allow\t\tbr0\n", nil, allowed},
	{"form feeds around", "\fallow \fbr0\f\r\n", nil, allowed},
	{"vertical tab before", "\vallow br0\n", nil, broken},
	{"vertical tab behind", "allow br0\v\n", nil, denied},
	{"vertical tab before the name", "allow \vbr0\n", nil, denied},
	{"vertical tab separates nothing", "allow\vbr0\n", nil, broken},
	{"CRLF", "allow br0\r\n\r\n# x\r\n", nil, allowed},
	{"lone CR", "allow br1\rallow br0\n", nil, denied}, // one name of 13 bytes
	{"short lone CR", "allow br1\rx\nallow br0\n", nil, allowed},
	{"two names", "allow br0 br1\n", nil, denied},
	{"comment", "# allow br1\n  # x\n\t#y\nallow br0\n", nil, allowed},
	{"comment behind", "allow br0 # mine\n", nil, denied},
	{"comment behind is a name too long", "allow br0 # the bridge\n", nil, broken},
	{"blank lines", "\n \n\t\n\nallow br0\n\n", nil, allowed},
	{"no argument", "allow br0\nallow\n", nil, broken},
	{"empty argument", "allow br0\nallow \ndeny \n", nil, allowed},
	{"no argument before CR", "allow br0\ndeny\r\n", nil, broken},
	{"allowfoo", "allowfoo br0\n", nil, broken},
	{"allowfoo alone", "allow br0\nallowfoo\n", nil, broken},
	{"unknown word", "permit br0\n", nil, broken},
	{"capital word", "Allow br0\n", nil, broken},
	{"15 bytes", "allow abcdefghijklmno\nallow br0\n", nil, allowed},
	{"16 bytes", "allow br0\nallow abcdefghijklmnop\n", nil, broken},
	{"16 bytes denied", "allow br0\ndeny abcdefghijklmnop\n", nil, broken},
	{"NUL ends a line", "allow br0\x00 and more\n", nil, allowed},
	{"NUL hides a word", "\x00bogus\nallow br0\n", nil, allowed},
	{"NUL before the separator", "allow\x00 br0\n", nil, broken},
	{"4095 bytes", "#" + strings.Repeat("x", 4094) + "\nallow br0\n", nil, allowed},
	{"UTF-8", "allow brücke\nallow br0\n", nil, allowed},
	{"byte order mark", "\ufeffallow br0\n", nil, broken},

	{"include", "include DIR/a\n", map[string]string{"a": "allow br0\n"}, allowed},
	{"include denies", "allow br0\ninclude DIR/a\n", map[string]string{"a": "deny br0\n"}, denied},
	{"include, path with spaces", "include  DIR/a b \n", map[string]string{"a b": "allow br0\n"}, allowed},
	{"include of a long path", "include DIR/././././././././././a\n", map[string]string{"a": "allow br0\n"}, allowed},
	{"include missing", "allow br0\ninclude DIR/nosuch\n", nil, allowed},
	{"include nothing", "allow br0\ninclude \n", nil, allowed},
	{"include without argument", "allow br0\ninclude\n", nil, broken},
	{"include a directory", "allow br0\ninclude DIR\n", nil, allowed},
	{"error in included, rule before", "include DIR/a\n", map[string]string{"a": "allow br0\nbogus x\n"}, allowed},
	{"error in included, rule behind", "include DIR/a\n", map[string]string{"a": "bogus x\nallow br0\n"}, denied},
	{
		"error in included, deny behind", "include DIR/a\nallow br0\n",
		map[string]string{"a": "bogus x\ndeny br0\n"},
		allowed,
	},
	{
		"error in included, the main one goes on", "include DIR/a\nallow br0\n",
		map[string]string{"a": "bogus\n"},
		allowed,
	},
	{"nested", "include DIR/a\n", map[string]string{"a": "include DIR/b\n", "b": "allow br0\n"}, allowed},
	{
		"cycle", "include DIR/a\nallow br0\n",
		map[string]string{"a": "include DIR/b\ndeny br1\n", "b": "include DIR/a\n"},
		allowed,
	},
	{
		"cycle, deny behind it", "include DIR/a\nallow br0\n",
		map[string]string{"a": "include DIR/a\ndeny br0\n"},
		denied,
	},
	{"twice", "include DIR/a\ninclude DIR/a\n", map[string]string{"a": "allow br0\n"}, allowed},
}

// write creates the files of a case, and returns the path of the main one.
func write(t *testing.T, main string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(dir, name), strings.ReplaceAll(text, "DIR", dir))
	}
	path := filepath.Join(dir, "bridge.conf")
	writeFile(t, path, strings.ReplaceAll(main, "DIR", dir))
	return path
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func judge(path, bridge string) (verdict, error) {
	acl, err := Read(path)
	if err != nil {
		return broken, err
	}
	d := acl.Decide(bridge)
	if d.Allowed {
		return allowed, d.Err()
	}
	return denied, d.Err()
}

func TestRead(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := judge(write(t, tc.main, tc.files), "br0"); got != tc.want {
				t.Errorf("%s, want %s: %v", got, tc.want, err)
			}
		})
	}
}

// Errors name file, line, cause and cure; those of included files come with a denial.
func TestErrors(t *testing.T) {
	long := "allow br0" + strings.Repeat(" ", 4095) + "\n"
	deep := map[string]string{"f8": "deny br0\n"}
	for i := 1; i < 8; i++ {
		deep[fmt.Sprint("f", i)] = fmt.Sprintf("include DIR/f%d\n", i+1)
	}
	ok := map[string]string{"f7": "allow br0\n"}
	for i := 1; i < 7; i++ {
		ok[fmt.Sprint("f", i)] = fmt.Sprintf("include DIR/f%d\n", i+1)
	}
	for _, tc := range []struct {
		name  string
		main  string
		files map[string]string
		want  string
	}{
		{"no argument", "\nallow\n", nil, `MAIN:2: "allow" has no argument (allow BRIDGE, deny BRIDGE, include FILE)`},
		{
			"unknown word", "permit br0\n",
			nil, `MAIN:1: unknown word "permit" (want allow, deny or include, and one space)`,
		},
		{
			"name", "deny abcdefghijklmnop\n",
			nil, `MAIN:1: name "abcdefghijklmnop" has 16 bytes (a bridge's has at most 15)`,
		},
		{"long line", "\n" + long, nil, `refused: MAIN:2: the line has 4104 bytes, more than 4095 (cut it)`},
		{
			"long line included", "allow br0\ninclude DIR/a\n",
			map[string]string{"a": long},
			`MAIN:2: include: refused: DIR/a:1: the line has 4104 bytes, more than 4095 (cut it)`,
		},
		{
			"deep", "allow br0\ninclude DIR/f1\n",
			deep, `refused: DIR/f8: files include each other more than 8 deep (include it from a file further up)`,
		},
		{"8 deep", "include DIR/f1\n", ok, ""},
		{
			"relative", "allow br0\ninclude a\n",
			map[string]string{"a": "deny br0\n"},
			`refused: MAIN:2: include "a": the path is relative (write it from / on)`,
		},
		{
			"device", "allow br0\ninclude /dev/null\n",
			nil, `MAIN:2: include: refused: /dev/null: it is not a regular file (replace it by one)`,
		},
		{
			"many rules", strings.Repeat("allow br0\n", 10001), nil,
			`refused: MAIN:10001: more than 10000 rules and includes in all (take some out)`,
		},
		{
			"many includes", strings.Repeat("include \n", 10001), nil,
			`refused: MAIN:10001: more than 10000 rules and includes in all (take some out)`,
		},
		{
			"large", strings.Repeat("#\n", 1<<19) + "#",
			nil, `refused: MAIN: more than 1048576 bytes, with the files read before it (take rules out)`,
		},
		{"1 MiB", strings.Repeat("#\n", 1<<19-5) + "allow br0\n", nil, ""},
		{
			"denied", "allow all\n\ndeny br0\n",
			nil, `bridge "br0": denied by MAIN:3: "deny br0", which no allow line beats (remove that line)`,
		},
		{"none", "allow br1\n", nil, `bridge "br0": no line of MAIN allows it (echo 'allow br0' >> MAIN)`},
		{
			"none, unreadable", "include DIR/nosuch\n",
			nil, `bridge "br0": no line of MAIN allows it (echo 'allow br0' >> MAIN); not read: MAIN:1: include: open DIR/nosuch: no such file or directory (create it, with lines such as: allow br0)`,
		},
		{
			"none, directory", "include DIR\n",
			nil, `bridge "br0": no line of MAIN allows it (echo 'allow br0' >> MAIN); not read: MAIN:1: include: DIR: it is a directory (name the files in it)`,
		},
		{
			"none, error behind", "include DIR/a\n",
			map[string]string{"a": "allow br2\nx\nallow br0\n"},
			`bridge "br0": no line of MAIN allows it (echo 'allow br0' >> MAIN); not read: MAIN:1: include: DIR/a:2: "x" has no argument (allow BRIDGE, deny BRIDGE, include FILE)`,
		},
		{
			"none, cycle", "include DIR/a\n",
			map[string]string{"a": "include DIR/bridge.conf\n"},
			`bridge "br0": no line of MAIN allows it (echo 'allow br0' >> MAIN); not read: DIR/a:1: include: MAIN: it includes itself (remove the include)`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := write(t, tc.main, tc.files)
			_, err := judge(path, "br0")
			want := strings.NewReplacer("MAIN", path, "DIR", filepath.Dir(path)).Replace(tc.want)
			switch {
			case want == "" && err == nil:
			case err == nil || want == "" || !strings.HasSuffix(err.Error(), want):
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestDecisionNamesItsRule(t *testing.T) {
	path := write(t, "allow br0\nallow all\ninclude DIR/a\n", map[string]string{"a": "\ndeny br1\n"})
	acl, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	a := filepath.Join(filepath.Dir(path), "a")
	for bridge, want := range map[string]Rule{
		"br0": {File: path, Line: 1, Bridge: "br0"},
		"br1": {File: a, Line: 2, Deny: true, Bridge: "br1"},
		"br2": {File: path, Line: 2, Bridge: "all"},
	} {
		d := acl.Decide(bridge)
		if d.Rule == nil || *d.Rule != want || d.Allowed == want.Deny {
			t.Errorf("%s: %+v, want rule %+v", bridge, d, want)
		}
	}
	if got := (Rule{File: "/f", Line: 7}).String(); got != "/f:7" {
		t.Error(got)
	}
}

// A name from a command line does not appear in a shell command.
func TestCureIsForNamesOnly(t *testing.T) {
	for _, name := range []string{"", "a'b", "x\ny", "much-too-long-a-name"} {
		if err := (&ACL{Path: "/f"}).Decide(name).Err(); err == nil || strings.Contains(err.Error(), "echo") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestMainFileMissing(t *testing.T) {
	_, err := Read(filepath.Join(t.TempDir(), "bridge.conf"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestFifoDoesNotHang(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bridge.conf")
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "it is not a regular file") {
		t.Error(err)
	}
	main := write(t, "allow br0\ninclude "+path+"\n", nil)
	if _, err := Read(main); !errors.Is(err, errRefused) {
		t.Error(err)
	}
}

// Files that do not exist, or that the caller may not read, are skipped; others that fail are not.
func TestOpenErrors(t *testing.T) {
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, file string
		want       error // nil: skipped
	}{
		{"nothing there", "DIR/nosuch", nil},
		{"no directory", "DIR/bridge.conf/x", nil},
		{"links in a circle", loop, syscall.ELOOP},
		{"a long name", "DIR/" + strings.Repeat("x", 256), syscall.ENAMETOOLONG},
	} {
		t.Run(tc.name, func(t *testing.T) {
			acl, err := Read(write(t, "allow br0\ninclude "+tc.file+"\n", nil))
			switch {
			case tc.want == nil && (err != nil || len(acl.Skipped) != 1):
				t.Errorf("%+v, %v", acl, err)
			case tc.want != nil && (!errors.Is(err, tc.want) || !errors.Is(err, errRefused)):
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// A caller may leave too few fds: finding a file takes one, and opening it takes one.
func TestFewFilesSkipNoDeny(t *testing.T) {
	path := write(t, "allow br0\ninclude DIR/a\n", map[string]string{"a": "deny br0\n"})
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	next := uint64(f.Fd())
	f.Close()
	refused := 0
	for more := range uint64(10) { // the highest fds that are open leave gaps
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE,
			&syscall.Rlimit{Cur: next + more, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		acl, err := Read(path)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
		if errors.Is(err, syscall.EMFILE) {
			refused++
		} else if err != nil || acl.Decide("br0").Allowed {
			t.Errorf("%d fds more: %+v, %v", more, acl, err)
		}
	}
	if refused < 2 || refused == 10 {
		t.Errorf("%d of 10 times there were too few fds", refused)
	}
}

// Each of 8 levels includes the next one many times: it is read once.
func TestIncludesDoNotMultiply(t *testing.T) {
	files := map[string]string{"f7": "allow br0\n"}
	for i := 1; i < 7; i++ {
		files[fmt.Sprint("f", i)] = strings.Repeat(fmt.Sprintf("include DIR/f%d\n", i+1), 100)
	}
	acl, err := Read(write(t, strings.Repeat("include DIR/f1\n", 100), files))
	if err != nil || len(acl.Rules) != 1 {
		t.Fatalf("%v, %v", acl, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, tc := range cases {
		f.Add([]byte(tc.main))
	}
	f.Add([]byte(strings.Repeat(" ", 5000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(data, []byte("include")) && bytes.Contains(data, []byte("/")) {
			return // names files of this machine
		}
		r := reader{acl: &ACL{Path: "/f"}}
		err := r.parse("/f", data)
		if len(r.acl.Rules) > maxRules || len(r.acl.Skipped) > maxRules {
			t.Fatalf("%d rules, %d skipped", len(r.acl.Rules), len(r.acl.Skipped))
		}
		if err != nil && (err.Error() == "" || len(err.Error()) > 500) {
			t.Fatalf("error of %d bytes", len(err.Error()))
		}
		checkDenies(t, r.acl, data)
	})
}

// checkDenies checks that no allow overrides a deny, and that every allowed bridge has an allow
// line.
func checkDenies(t *testing.T, acl *ACL, data []byte) {
	lines := bytes.Split(data, []byte("\n"))
	for _, rule := range acl.Rules {
		d := acl.Decide(rule.Bridge)
		if rule.Deny && d.Allowed || !d.Allowed && d.Rule == nil {
			t.Fatalf("%+v is beaten: %+v", rule, d)
		}
		if !bytes.Contains(lines[rule.Line-1], []byte(rule.Bridge)) || len(rule.Bridge) > maxName {
			t.Fatalf("%+v is not in line %q", rule, lines[rule.Line-1])
		}
	}
	if d := acl.Decide("nobody-has-it"); d.Allowed && d.Rule.Bridge != All {
		t.Fatalf("%+v", d)
	}
}
