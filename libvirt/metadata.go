package libvirt

import (
	"context"

	golibvirt "github.com/digitalocean/go-libvirt"
)

var (
	domainSetMetadata = procedure{remoteProgram, 264, "DOMAIN_SET_METADATA", nil}
	domainGetMetadata = procedure{remoteProgram, 265, "DOMAIN_GET_METADATA", aString}
)

// metadataElement is an element, where the other types are title and description.
const metadataElement = int32(golibvirt.DomainMetadataElement)

// SetMetadata stores one element in the domain's <metadata>; it replaces the element of namespace
// uri. Empty text removes that element. The text has no namespace of its own: libvirt puts all its
// elements into uri, with that prefix, and refuses text that declares the prefix itself.
func (c *Conn) SetMetadata(ctx context.Context, dom Domain, prefix, uri, text string, affect Affect) error {
	var element golibvirt.OptString
	if text != "" {
		element = golibvirt.OptString{text}
	}
	return c.call(ctx, domainSetMetadata, func() error {
		return c.lib.DomainSetMetadata(dom.to(), metadataElement, element, golibvirt.OptString{prefix},
			golibvirt.OptString{uri}, golibvirt.DomainModificationImpact(affect))
	}, dom.Name, prefix, uri, text)
}

// Metadata returns the element of namespace uri in the domain's <metadata>, without that namespace,
// in the form of [Conn.SetMetadata]. If there is none, the error matches [ErrNoMetadata].
func (c *Conn) Metadata(ctx context.Context, dom Domain, uri string, affect Affect) (string, error) {
	p := &call{procedure: domainGetMetadata, text: []string{dom.Name, uri}}
	return ask(ctx, c, p, func() (string, error) {
		return c.lib.DomainGetMetadata(dom.to(), metadataElement,
			golibvirt.OptString{uri}, golibvirt.DomainModificationImpact(affect))
	})
}
