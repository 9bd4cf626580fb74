package arch

import (
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A source is one file of the repository that people read.
type source struct {
	path string
	text string
}

// A passage is a piece of a source's prose: a comment, a paragraph, a string literal or a line.
type passage struct {
	path string
	line int // of its beginning
	text string
}

// sources returns the Go code, Markdown, shell scripts, unit files, workflows, makefiles and script
// tests of the repository. Corpora of fuzz tests and generated figures are left out.
func sources(t *testing.T) (all []source) {
	t.Helper()
	const root = "../.."
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (name == ".git" || name == "fuzz" || name == "build" || name == ".cache"):
			return filepath.SkipDir
		case !entry.Type().IsRegular() || !readable(name):
			return nil
		}
		text, err := os.ReadFile(path)
		all = append(all, source{strings.TrimPrefix(path, root+"/"), string(text)})
		return err
	})
	if err != nil || len(all) < 500 {
		t.Fatalf("%d files: %v", len(all), err)
	}
	return all
}

func readable(name string) bool {
	switch filepath.Ext(name) {
	case ".go", ".md", ".sh", ".bash", ".yml", ".yaml", ".service", ".socket", ".txt", ".txtar", ".c":
		return true
	}
	return name == "Makefile" || name == "run"
}

// passages returns the prose of a source.
func (s source) passages() ([]passage, error) {
	switch filepath.Ext(s.path) {
	case ".go":
		return s.ofGo()
	case ".md":
		return s.ofMarkdown(), nil
	default:
		return s.ofScript(), nil
	}
}

// ofGo returns the comments and string literals of Go code, each comment group as one line.
func (s source) ofGo() (all []passage, err error) {
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, s.path, s.text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, group := range f.Comments {
		all = append(all, passage{s.path, files.Position(group.Pos()).Line, oneLine(group.Text())})
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				all = append(all, passage{s.path, files.Position(n.Pos()).Line, oneLine(text)})
			}
		}
		return true
	})
	return all, nil
}

// ofMarkdown returns the paragraphs, the rows of tables and the lines of code blocks.
func (s source) ofMarkdown() (all []passage) {
	code, open := false, false
	number := 0
	for line := range strings.Lines(s.text) {
		number++
		text := strings.TrimSpace(line)
		switch fence := strings.HasPrefix(text, "```"); {
		case fence || text == "":
			code, open = code != fence, false
		case open && !code && !strings.ContainsAny(text[:1], "|#-*"):
			all[len(all)-1].text += " " + text
		default:
			all = append(all, passage{s.path, number, text})
			open = true
		}
	}
	return all
}

// ofScript returns the comments of a script as paragraphs, and its other lines as they are. Of a
// script test it returns the comments alone: its other lines quote what the programs print.
func (s source) ofScript() (all []passage) {
	tests := strings.Contains(s.path, "testdata/")
	number, before := 0, false
	for line := range strings.Lines(s.text) {
		number++
		text, comment := strings.CutPrefix(strings.TrimSpace(line), "#")
		switch {
		case comment && before:
			all[len(all)-1].text += text
		case comment || !tests && text != "":
			all = append(all, passage{s.path, number, text})
		}
		before = comment
	}
	return all
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// columns returns the width of a line in an editor whose tabs are four columns wide.
func columns(line string) (n int) {
	for _, r := range line {
		if r == '\t' {
			n += 4 - n%4
		} else {
			n++
		}
	}
	return n
}

// inLiterals returns the lines that a raw string literal begins, continues or ends on.
func inLiterals(text string) map[int]bool {
	lines := map[int]bool{}
	files := token.NewFileSet()
	file := files.AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(file, []byte(text), nil, 0)
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return lines
		}
		if n := strings.Count(lit, "\n"); tok == token.STRING && n > 0 {
			for line := file.Line(pos); n >= 0; line, n = line+1, n-1 {
				lines[line] = true
			}
		}
	}
}

func TestPassages(t *testing.T) {
	for _, c := range []struct {
		source
		want string
	}{
		{
			source{"a.go", "package a // one\n\n// two\n// lines\nvar a = \"three\" // four\n"},
			"1:one 3:two lines 5:four 5:three",
		},
		{
			source{"a.md", "# one\n\ntwo\nlines\n\n| a | row |\n| b |\n```\ncode\n\nmore\n```\nend\n- list\n  on\n"},
			"1:# one 3:two lines 6:| a | row | 7:| b | 9:code 11:more 13:end 14:- list on",
		},
		{source{"a.sh", "# one\n# two\necho three # four\n"}, "1: one two 3:echo three # four"},
		{source{"testdata/a.txt", "# one\nvmnet list\nstdout two\n"}, "1: one"},
	} {
		all, err := c.passages()
		var got []string
		for _, p := range all {
			got = append(got, strconv.Itoa(p.line)+":"+p.text)
		}
		if joined := strings.Join(got, " "); err != nil || joined != c.want {
			t.Errorf("%s: %q, %v, want %q", c.path, joined, err, c.want)
		}
	}
}

func TestColumns(t *testing.T) {
	for line, want := range map[string]int{"": 0, "\ta": 5, "ab\tc": 5, "ä→": 2} {
		if got := columns(line); got != want {
			t.Errorf("%q: %d, want %d", line, got, want)
		}
	}
}
