// Package strictyaml reads configuration files: only lists, mappings and plain values, no key that
// is unknown or written twice, and errors that say where they are.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Error says what is wrong in a file, and where.
type Error struct {
	File   string
	Line   int // from 1
	Column int // from 1
	Text   string
	Source string // the line, at most maxSource bytes of it; empty if the whole file is meant
}

// Error returns the place, what is wrong there, and the line.
func (e *Error) Error() string {
	text := fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Text)
	if e.Source == "" {
		return text
	}
	return fmt.Sprintf("%s, in `%s`", text, e.Source)
}

// A Document is a file's text, which errors quote. Only lists, mappings and scalars are accepted,
// so that each setting stands in one place, without anchors, tags and merges.
type Document struct {
	file  string
	text  []byte
	lines [][]byte
}

// MaxEntries bounds each list and each mapping.
const MaxEntries = 1000

// maxSource is the most that errors quote of a line, in bytes.
const maxSource = 80

// Errorf returns an error about the place of t, or the whole file if that is nil. It is an *Error.
func (d *Document) Errorf(t *token.Token, format string, args ...any) error {
	e := &Error{File: d.file, Line: 1, Column: 1, Text: fmt.Sprintf(format, args...)}
	if t == nil || t.Position == nil {
		return e
	}
	e.Line, e.Column = max(1, t.Position.Line), max(1, t.Position.Column)
	if e.Line <= len(d.lines) {
		source := strings.TrimSpace(string(d.lines[e.Line-1]))
		if len(source) > maxSource {
			source = source[:maxSource] + "..."
		}
		e.Source = strings.ToValidUTF8(source, "?")
	}
	return e
}

// Root returns the file's content; nil if the file is empty but for comments. It refuses more than
// MaxBytes.
func (d *Document) Root() (ast.Node, error) {
	if len(d.text) > MaxBytes {
		return nil, d.Errorf(nil, "the file has more than %d bytes", MaxBytes)
	}
	tokens := lexer.Tokenize(string(d.text))
	if err := d.shallow(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		return nil, d.syntax(err)
	}
	var root ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case root != nil:
			return nil, d.Errorf(TokenOf(doc.Body), "a second document in the file (remove it)")
		default:
			root = doc.Body
		}
	}
	return root, nil
}

// shallow refuses deep nesting: the parser's time grows with the square of the depth, which could
// keep it busy for minutes.
func (d *Document) shallow(tokens token.Tokens) error {
	const maxFlow, maxColumn = 8, 80
	flow := 0
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType:
			if t.Position.Column > maxColumn {
				return d.Errorf(t, "%q is too far to the right (indent less)", t.Value)
			}
		}
		if flow > maxFlow {
			return d.Errorf(t, "nested too deep")
		}
	}
	return nil
}

// syntax converts a parser's error to an Error.
func (d *Document) syntax(err error) error {
	var at interface {
		GetMessage() string
		GetToken() *token.Token
	}
	if errors.As(err, &at) {
		return d.Errorf(at.GetToken(), "%s", at.GetMessage())
	}
	return d.Errorf(nil, "%v", err)
}

// A Field is a key of a mapping and the function that parses its value.
type Field struct {
	Key string
	Set func(ast.Node) error
}

// Key returns the Field of that key.
func Key(key string, set func(ast.Node) error) Field { return Field{key, set} }

// Mapping passes the values of n to the fields with their keys.
func (d *Document) Mapping(n ast.Node, what string, fields ...Field) error {
	return d.Entries(n, what, func(key string, at *token.Token, value ast.Node) error {
		var keys []string
		for _, f := range fields {
			if f.Key == key {
				return f.Set(value)
			}
			keys = append(keys, f.Key)
		}
		return d.Errorf(at, "%s has no key %q (want %s)", what, key, strings.Join(keys, ", "))
	})
}

// Entries calls f with each key of a mapping, its place and its value.
func (d *Document) Entries(n ast.Node, what string, f func(key string, at *token.Token, value ast.Node) error) error {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return d.Errorf(TokenOf(n), "%s is not a mapping of keys to values", what)
	}
	if len(m.Values) > MaxEntries {
		return d.Errorf(TokenOf(n), "%s has more than %d keys", what, MaxEntries)
	}
	seen := map[string]bool{}
	for _, v := range m.Values {
		at := TokenOf(v.Key)
		key, err := d.Text(v.Key, "a key of "+what)
		if err != nil {
			return err
		}
		if seen[key] {
			return d.Errorf(at, "%s has %q twice", what, key)
		}
		seen[key] = true
		if err := f(key, at, v.Value); err != nil {
			return err
		}
	}
	return nil
}

// List calls f with each item.
func (d *Document) List(n ast.Node, what string, f func(ast.Node) error) error {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		return d.Errorf(TokenOf(n), "%s is not a list (write [a, b])", what)
	}
	if len(s.Values) > MaxEntries {
		return d.Errorf(TokenOf(n), "%s has more than %d entries", what, MaxEntries)
	}
	for _, item := range s.Values {
		if err := f(item); err != nil {
			return err
		}
	}
	return nil
}

// Text returns a scalar as it is written, so that a bridge may be called 10.
func (d *Document) Text(n ast.Node, what string) (string, error) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, nil
	}
	return "", d.Errorf(TokenOf(n), "%s is not a plain value", what)
}

// Number returns a whole number from least to most.
func (d *Document) Number(n ast.Node, what string, least, most int) (int, error) {
	text, err := d.Text(n, what)
	if err != nil {
		return 0, err
	}
	i, err := strconv.Atoi(text)
	if err != nil || i < least || i > most {
		return 0, d.Errorf(TokenOf(n), "%s is %q: want %d to %d", what, text, least, most)
	}
	return i, nil
}

// Flag returns true or false.
func (d *Document) Flag(n ast.Node, what string) (bool, error) {
	b, ok := n.(*ast.BoolNode)
	if !ok {
		return false, d.Errorf(TokenOf(n), "%s is neither true nor false", what)
	}
	return b.Value, nil
}

// TokenOf returns the token where a node begins, if known.
func TokenOf(n ast.Node) *token.Token {
	switch n := n.(type) {
	case nil:
		return nil
	case *ast.MappingNode:
		if n.Start != nil && n.Start.Type != token.MappingStartType && len(n.Values) > 0 {
			return TokenOf(n.Values[0].Key) // not the colon after it
		}
	}
	return n.GetToken()
}

// byteOrderMark is written at the start of a file by some editors.
var byteOrderMark = []byte("\ufeff")

// New returns the Document of a file of that name and text.
func New(file string, data []byte) *Document {
	data = bytes.TrimPrefix(data, byteOrderMark)
	return &Document{file: file, text: data, lines: bytes.Split(data, []byte("\n"))}
}
