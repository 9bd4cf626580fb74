package libvirt

import (
	"context"
	"encoding/xml"
	"fmt"
	"strings"
)

// maxMetadata bounds how many elements a domain's <metadata> has; libvirt keeps one of each namespace.
const maxMetadata = 256

var (
	domainSetMetadata = procedure{remoteProgram, 264, "DOMAIN_SET_METADATA"}
	domainGetMetadata = procedure{remoteProgram, 265, "DOMAIN_GET_METADATA"}
)

// metadataElement is VIR_DOMAIN_METADATA_ELEMENT; the others are title and description.
const metadataElement = 2

// SetMetadata stores one element in the domain's <metadata>, in place of the one of namespace uri;
// empty text removes that. The text has no namespace of its own: libvirt puts all its elements
// into uri under prefix. It refuses a text that declares prefix itself.
func (c *Conn) SetMetadata(ctx context.Context, dom Domain, prefix, uri, text string, affect Affect) error {
	return c.call(ctx, domainSetMetadata, func(e *encoder) {
		e.domain(dom)
		e.int32(metadataElement)
		if e.present(text != ""); text != "" {
			e.string(text)
		}
		e.present(true)
		e.string(prefix)
		e.present(true)
		e.string(uri)
		e.uint32(uint32(affect))
	}, nil)
}

// Metadata is the element of namespace uri in the domain's <metadata>, without that
// namespace, as [Conn.SetMetadata] takes it. That there is none Is [ErrNoMetadata].
func (c *Conn) Metadata(ctx context.Context, dom Domain, uri string, affect Affect) (text string, err error) {
	err = c.call(ctx, domainGetMetadata, func(e *encoder) {
		e.domain(dom)
		e.int32(metadataElement)
		e.present(true)
		e.string(uri)
		e.uint32(uint32(affect))
	}, func(d *decoder) { text = d.string() })
	return text, err
}

// metadata is where in a definition's text the elements of its <metadata> are.
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

// Metadata is the element of namespace uri in the domain's <metadata>, the first if there are
// several, as libvirt has it. The text can be parsed on its own: what it takes from the XML
// around it are namespaces, which it has declared itself.
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

// inherited declares the namespaces that an element has of those around it, the nearest first.
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

// declares is the attribute's name if it declares a namespace.
func declares(a xml.Attr) string {
	switch {
	case a.Name.Space == "xmlns":
		return "xmlns:" + a.Name.Local
	case a.Name.Space == "" && a.Name.Local == "xmlns":
		return "xmlns"
	}
	return ""
}

// metadataXML notes where its elements are, whatever they are.
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
