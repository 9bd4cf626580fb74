package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// WriteYAML writes v as a YAML document with the keys and values of its JSON, in their order. It is
// as safe for a terminal as WriteJSON.
func WriteYAML(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	y := yamlWriter{json: d}
	if err := y.value(0, false); err != nil {
		return err
	}
	_, err = w.Write(y.out.Bytes())
	return err
}

type yamlWriter struct {
	json *json.Decoder
	out  bytes.Buffer
}

// value writes the next value. At its call, the line has "key:" or "-", or is empty. In a list, the
// first key of a mapping stays on the line of its dash.
func (y *yamlWriter) value(indent int, inList bool) error {
	t, err := y.json.Token()
	if err != nil {
		return err
	}
	open, nested := t.(json.Delim)
	if !nested {
		y.scalar(t)
		return nil
	}
	if !y.json.More() {
		y.lead()
		y.out.WriteString(map[json.Delim]string{'[': "[]\n", '{': "{}\n"}[open])
		_, err = y.json.Token()
		return err
	}
	first := true
	if inList {
		y.out.WriteByte(' ')
	} else if indent > 0 {
		y.out.WriteByte('\n')
	}
	for ; y.json.More(); first = false {
		if !inList || !first {
			y.out.WriteString(strings.Repeat("  ", indent))
		}
		if open == '[' {
			y.out.WriteByte('-')
			if err := y.value(indent+1, true); err != nil {
				return err
			}
			continue
		}
		key, err := y.json.Token()
		if err != nil {
			return err
		}
		y.out.WriteString(yamlText(fmt.Sprint(key)) + ":")
		if err := y.value(indent+1, false); err != nil {
			return err
		}
	}
	_, err = y.json.Token()
	return err
}

// lead separates a value from what is on its line.
func (y *yamlWriter) lead() {
	if b := y.out.Bytes(); len(b) > 0 && b[len(b)-1] != '\n' {
		y.out.WriteByte(' ')
	}
}

func (y *yamlWriter) scalar(t json.Token) {
	y.lead()
	switch v := t.(type) {
	case nil:
		y.out.WriteString("null\n")
	case string:
		y.out.WriteString(yamlText(v) + "\n")
	default:
		fmt.Fprintln(&y.out, v)
	}
}

// plainYAML matches what no YAML parser takes for anything but text, unless it is reserved.
var plainYAML = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_./-]*$`)

var reservedYAML = []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}

// yamlText returns a text as a plain or as a double-quoted scalar.
func yamlText(s string) string {
	if plainYAML.MatchString(s) && !slices.Contains(reservedYAML, strings.ToLower(s)) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String() + `"`
}
