// Package metrics writes what vmnet knows of guests' NICs in the text format of Prometheus
// (prometheus.io/docs/instrumenting/exposition_formats), and serves it.
package metrics

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Kinds of families.
const (
	Counter = "counter"
	Gauge   = "gauge"
)

// A Family is all samples of one metric.
type Family struct {
	Name    string   `json:"name"`
	Help    string   `json:"help"`
	Kind    string   `json:"type"`
	Samples []Sample `json:"samples"`
}

// A Sample is one value, with labels that no other sample of its family has.
type Sample struct {
	Labels []Label `json:"labels"`
	Value  float64 `json:"value"`
}

// A Label distinguishes a sample. Guests and users choose some values.
type Label struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Write writes families that have samples.
func Write(w io.Writer, all []Family) error {
	var b bytes.Buffer
	for _, f := range all {
		if len(f.Samples) == 0 {
			continue
		}
		fmt.Fprintf(&b, "# HELP %[1]s %[2]s\n# TYPE %[1]s %[3]s\n", f.Name, escape(f.Help, false), f.Kind)
		for _, s := range f.Samples {
			b.WriteString(f.Name)
			for i, l := range s.Labels {
				sep := ","
				if i == 0 {
					sep = "{"
				}
				fmt.Fprintf(&b, `%s%s="%s"`, sep, l.Name, escape(l.Value, true))
			}
			if len(s.Labels) > 0 {
				b.WriteByte('}')
			}
			b.WriteString(" " + strconv.FormatFloat(s.Value, 'g', -1, 64) + "\n")
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// escape returns a label's value, or a help text, in which quotes stay.
func escape(s string, quotes bool) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), `\`, `\\`)
	if quotes {
		s = strings.ReplaceAll(s, `"`, `\"`)
	}
	return strings.ReplaceAll(s, "\n", `\n`)
}
