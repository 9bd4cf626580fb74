package privilege

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestWay: the way to a file is what the kernel follows, including links and their directories.
func TestWay(t *testing.T) {
	dir := t.TempDir()
	for _, directory := range []string{"a", "b", "b/c"} {
		must(t, os.Mkdir(dir+"/"+directory, 0o755))
	}
	must(t, os.WriteFile(dir+"/b/c/file", nil, 0o644))
	for link, target := range map[string]string{
		"a/up": "../b//c/", "a/abs": dir + "/a/up/file",
		"b/loop": "loop", "a/none": "nothing",
	} {
		must(t, os.Symlink(target, dir+"/"+link))
	}
	for path, want := range map[string]string{
		"/b/c/file":        "/b /b/c /b/c/file",
		"//b/./c//file":    "/b /b/c /b/c/file",
		"/a/up/file":       "/a /a/up / /b /b/c /b/c/file",
		"/a/abs":           "/a /a/abs < /a /a/up / /b /b/c /b/c/file",
		"/a/up/../c/file":  "/a /a/up / /b /b/c /b /b/c /b/c/file",
		"/a/up/../../a/up": "/a /a/up / /b /b/c /b / /a /a/up / /b /b/c",
		"/b/loop":          "too many levels of symbolic links",
		"/a/none":          "no such file or directory",
		"/b/c/file/x":      "not a directory",
	} {
		way, err := Way(dir + path)
		var got []string
		for _, file := range way {
			rest, within := strings.CutPrefix(file, dir)
			if !within {
				rest = "<" // where an absolute link begins again
			} else if rest == "" {
				rest = "/"
			}
			got = append(got, rest)
		}
		got = slices.Compact(got)
		if len(got) > 1 {
			got = got[2:] // the way to dir
		}
		text := strings.ReplaceAll(strings.Join(got, " "), "< / ", "< ")
		if err != nil && !strings.HasSuffix(err.Error(), want) || err == nil && text != want {
			t.Errorf("%s: %s, %v, want %s", path, text, err, want)
		}
	}
	if _, err := Way("b/c"); err == nil {
		t.Error("a relative path")
	}
}
