package libvirt

import "context"

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
