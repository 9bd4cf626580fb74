package arch

import (
	"go/scanner"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	maxTextColumns = 100 // of a line of a comment or of Markdown
	maxCodeColumns = 120 // of a line of Go
)

// unbreakable is the end of a line that no space breaks: a URL, a path or a long word.
var unbreakable = regexp.MustCompile(`^\s*(//|#|[-*>]|\d+\.)?\s*\S+$`)

// TestLinesFit measures Go code, Markdown and scripts. Tables, code blocks, golden files and words
// that cannot be broken may be wider.
func TestLinesFit(t *testing.T) {
	for _, s := range sources(t) {
		for _, line := range s.tooWide() {
			t.Errorf("%s:%d: %d columns", s.path, line.number, line.columns)
		}
	}
}

type wideLine struct{ number, columns int }

func (s source) tooWide() []wideLine {
	switch ext := filepath.Ext(s.path); {
	case ext == ".go":
		return s.wideGo()
	case ext == ".md":
		return s.wideMarkdown()
	case strings.Contains(s.path, "testdata/") || strings.HasSuffix(s.path, ".json"):
		return nil
	default:
		return s.wideComments()
	}
}

// wideGo returns the lines of code and of comments that are too wide, except for raw literals of
// more than one line, lines that end with a long literal, and the output of examples.
func (s source) wideGo() (wide []wideLine) {
	literals := inLiterals(s.text)
	number := 0
	for line := range strings.Lines(s.text) {
		number++
		line = strings.TrimSuffix(line, "\n")
		limit := maxCodeColumns
		if strings.HasPrefix(strings.TrimSpace(line), "//") {
			limit = maxTextColumns
		}
		if n := columns(line); n > limit && !literals[number] && !unbreakable.MatchString(line) && !oneLiteral(line) &&
			!caseRow.MatchString(line) &&
			!strings.HasPrefix(line, "//go:") && !strings.HasPrefix(strings.TrimSpace(line), "// Output:") {
			wide = append(wide, wideLine{number, n})
		}
	}
	return wide
}

// caseRow is a row of a table of cases whose key is a string, which gofmt keeps on one line.
var caseRow = regexp.MustCompile("^\\s*(\"([^\"\\\\]|\\\\.)*\"|`[^`]*`):\\s")

// oneLiteral reports whether a line of Go ends with a string literal, after no more than its name:
// such a text is looked for as a whole.
func oneLiteral(line string) bool {
	files := token.NewFileSet()
	var s scanner.Scanner
	s.Init(files.AddFile("", -1, len(line)), []byte(line), nil, 0)
	literal := false
	for {
		switch _, tok, lit := s.Scan(); tok {
		case token.EOF:
			return literal
		case token.STRING:
			literal = literal || len(lit) > maxCodeColumns/2
		case token.COMMA, token.SEMICOLON, token.ADD, token.RPAREN, token.RBRACE, token.COLON:
		case token.RETURN, token.CONST, token.IDENT, token.PERIOD, token.AND, token.ASSIGN, token.DEFINE, token.LBRACE:
			if literal {
				return false
			}
		default:
			return false
		}
	}
}

func (s source) wideMarkdown() (wide []wideLine) {
	code, number := false, 0
	for line := range strings.Lines(s.text) {
		number++
		line = strings.TrimSuffix(line, "\n")
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		code = code != fence
		if n := columns(line); n > maxTextColumns && !code && !strings.HasPrefix(line, "|") &&
			!strings.HasPrefix(line, "    ") && !strings.Contains(line, "](") && !unbreakable.MatchString(line) {
			wide = append(wide, wideLine{number, n})
		}
	}
	return wide
}

func (s source) wideComments() (wide []wideLine) {
	number := 0
	for line := range strings.Lines(s.text) {
		number++
		line = strings.TrimSuffix(line, "\n")
		if n := columns(line); n > maxTextColumns && strings.HasPrefix(strings.TrimSpace(line), "#") &&
			!unbreakable.MatchString(line) {
			wide = append(wide, wideLine{number, n})
		}
	}
	return wide
}

func TestTooWide(t *testing.T) {
	long, words := strings.Repeat("x", 130), strings.Repeat("word ", 26)
	for _, c := range []struct {
		path, line string
		want       bool
	}{
		{"a.go", "// " + words, true},
		{"a.go", "// " + words[:96], false},
		{"a.go", "// " + long, false},
		{"a.go", "var a = f(" + strings.ReplaceAll(words, " ", ", ") + ")", true},
		{"a.go", "\t\"" + words + "\",", false},
		{"a.go", "\tf(\"" + words + "\",", true},
		{"a.go", "\t\"" + words + "\": {a, b},", false},
		{"a.go", "var a = `\n" + words + "\n`", false},
		{"a.md", words, true},
		{"a.md", "| " + words + " |", false},
		{"a.md", "```\n" + words + "\n```", false},
		{"a.md", "- <https://" + long + ">", false},
		{"a.sh", "# " + words, true},
		{"a.sh", words, false},
		{"testdata/a.txt", "# " + words, false},
	} {
		if wide := (source{c.path, c.line + "\n"}).tooWide(); (len(wide) == 1) != c.want {
			t.Errorf("%s: %q: %v, want %v", c.path, c.line, wide, c.want)
		}
	}
}
