package domainxml

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// maxMetadata bounds the elements of a domain's <metadata>; libvirt keeps one per namespace.
const maxMetadata = 256

// metadata locates the elements of a definition's <metadata> in its text.
type metadata struct {
	text     string
	around   []xml.Attr // of <domain>
	elements []element
}

// element is text[from:to] of a definition.
type element struct {
	space    string     // its namespace
	own      []xml.Attr // its attributes
	around   []xml.Attr // those of <metadata>
	from, to int64
}

// Metadata returns the first element of namespace uri in the domain's <metadata>, as libvirt does.
// The text can be parsed on its own: it declares the namespaces that it inherits from the elements
// around it.
func (def *Definition) Metadata(uri string) (text string, ok bool) {
	for _, e := range def.metadata.elements {
		if e.space == uri && uri != "" {
			text = def.metadata.text[e.from:e.to]
			name := strings.IndexAny(text, " \t\r\n/>")
			return text[:name] + inherited(e.own, e.around, def.metadata.around) + text[name:], true
		}
	}
	return "", false
}

// inherited declares the namespaces that an element inherits, those of the nearest element first.
func inherited(own []xml.Attr, around ...[]xml.Attr) string {
	declared := map[string]bool{}
	for _, a := range own {
		declared[declares(a)] = true
	}
	var b strings.Builder
	for _, attrs := range around {
		for _, a := range attrs {
			if name := declares(a); name != "" && !declared[name] {
				declared[name] = true
				b.WriteString(" " + name + `="`)
				_ = xml.EscapeText(&b, []byte(a.Value)) // a Builder takes all
				b.WriteString(`"`)
			}
		}
	}
	return b.String()
}

// declares returns the attribute's name if it declares a namespace, or "".
func declares(a xml.Attr) string {
	switch {
	case a.Name.Space == "xmlns":
		return "xmlns:" + a.Name.Local
	case a.Name.Space == "" && a.Name.Local == "xmlns":
		return "xmlns"
	}
	return ""
}

// metadataXML records where its elements are.
type metadataXML struct{ elements []element }

// UnmarshalXML is encoding/xml's.
func (m *metadataXML) UnmarshalXML(d *xml.Decoder, start xml.StartElement) error {
	for {
		from := d.InputOffset()
		token, err := d.Token()
		if err != nil {
			return err
		}
		switch t := token.(type) {
		case xml.EndElement:
			return nil
		case xml.StartElement:
			if err := d.Skip(); err != nil {
				return err
			}
			if len(m.elements) == maxMetadata {
				return fmt.Errorf("metadata of more than %d elements", maxMetadata)
			}
			m.elements = append(m.elements, element{t.Name.Space, t.Attr, start.Attr, from, d.InputOffset()})
		}
	}
}
