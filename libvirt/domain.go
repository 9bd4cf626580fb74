package libvirt

import (
	"context"

	"vmnet/libvirt/domainxml"
)

// Domain names a guest. Libvirt goes by the UUID.
type Domain struct {
	Name string
	UUID domainxml.UUID
	ID   int32 // -1 where it did not run when this was read
}

// ListFlags choose domains: virConnectListAllDomainsFlags. None of a group is all of it.
type ListFlags uint32

// One group of them.
const (
	ListActive   ListFlags = 1 << 0
	ListInactive ListFlags = 1 << 1
)

// XMLFlags choose what a domain's XML tells: virDomainXMLFlags. 0 is the domain as it is now.
type XMLFlags uint32

// Some of them.
const (
	XMLInactive XMLFlags = 1 << 1 // as it will be at the next start
)

// Affect says whether a change is to the running domain, to what is stored
// of it, or both: virDomainModificationImpact.
type Affect uint32

// What a change affects.
const (
	AffectCurrent Affect = 0      // the running domain if it runs, else what is stored
	AffectLive    Affect = 1 << 0 // an error that Is ErrOperationInvalid where it does not run
	AffectConfig  Affect = 1 << 1 // an error that Is ErrOperationInvalid where it is transient
)

var (
	connectListAllDomains   = procedure{remoteProgram, 273, "CONNECT_LIST_ALL_DOMAINS"}
	domainLookupByName      = procedure{remoteProgram, 23, "DOMAIN_LOOKUP_BY_NAME"}
	domainLookupByUUID      = procedure{remoteProgram, 24, "DOMAIN_LOOKUP_BY_UUID"}
	domainGetXMLDesc        = procedure{remoteProgram, 14, "DOMAIN_GET_XML_DESC"}
	domainIsPersistent      = procedure{remoteProgram, 151, "DOMAIN_IS_PERSISTENT"}
	domainAttachDeviceFlags = procedure{remoteProgram, 160, "DOMAIN_ATTACH_DEVICE_FLAGS"}
	domainDetachDeviceAlias = procedure{remoteProgram, 392, "DOMAIN_DETACH_DEVICE_ALIAS"}

	connectDomainEventCallbackRegisterAny   = procedure{remoteProgram, 316, "CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY"}
	connectDomainEventCallbackDeregisterAny = procedure{remoteProgram, 317, "CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY"}
)

// ListDomains lists the domains that flags choose, in no order.
func (c *Conn) ListDomains(ctx context.Context, flags ListFlags) ([]Domain, error) {
	var domains []Domain
	err := c.call(ctx, connectListAllDomains, func(e *encoder) {
		e.int32(1) // the domains, not only how many
		e.uint32(uint32(flags))
	}, func(d *decoder) {
		for range d.count(maxList, 24) {
			domains = append(domains, d.domain())
		}
		d.uint32() // how many
	})
	if err != nil {
		return nil, err
	}
	return domains, nil
}

// LookupByName finds a domain, running or not. That there is none Is [ErrNoDomain].
func (c *Conn) LookupByName(ctx context.Context, name string) (dom Domain, err error) {
	err = c.call(ctx, domainLookupByName, func(e *encoder) { e.string(name) }, func(d *decoder) { dom = d.domain() })
	return dom, err
}

// LookupByUUID is [Conn.LookupByName] by the UUID.
func (c *Conn) LookupByUUID(ctx context.Context, uuid domainxml.UUID) (dom Domain, err error) {
	err = c.call(ctx, domainLookupByUUID, func(e *encoder) { e.buf = append(e.buf, uuid[:]...) }, func(d *decoder) { dom = d.domain() })
	return dom, err
}

// XML describes the domain; [domainxml.Parse] reads it.
func (c *Conn) XML(ctx context.Context, dom Domain, flags XMLFlags) (xml string, err error) {
	err = c.call(ctx, domainGetXMLDesc, func(e *encoder) {
		e.domain(dom)
		e.uint32(uint32(flags))
	}, func(d *decoder) { xml = d.string() })
	return xml, err
}

// IsPersistent tells whether libvirt keeps the domain when it is off.
func (c *Conn) IsPersistent(ctx context.Context, dom Domain) (persistent bool, err error) {
	err = c.call(ctx, domainIsPersistent, func(e *encoder) { e.domain(dom) }, func(d *decoder) { persistent = d.int32() == 1 })
	return persistent, err
}

// AttachDevice adds a device. A guest that runs may not have noticed it when AttachDevice returns.
func (c *Conn) AttachDevice(ctx context.Context, dom Domain, xml string, affect Affect) error {
	return c.changeDevice(ctx, domainAttachDeviceFlags, dom, xml, affect)
}

// DetachDeviceAlias asks for the removal of the device with that alias, and does not wait for it: the
// device is gone once the guest has released it. [DeviceRemoved] or [DeviceRemovalFailed] reports the
// outcome, as does the XML. Until then QEMU refuses another request. A domain without such a device is
// an [*Error], for which libvirt 9.0 has no code of its own.
func (c *Conn) DetachDeviceAlias(ctx context.Context, dom Domain, alias string, affect Affect) error {
	return c.changeDevice(ctx, domainDetachDeviceAlias, dom, alias, affect)
}

// changeDevice makes calls that take a domain, a string and flags.
func (c *Conn) changeDevice(ctx context.Context, p procedure, dom Domain, device string, affect Affect) error {
	return c.call(ctx, p, func(e *encoder) {
		e.domain(dom)
		e.string(device)
		e.uint32(uint32(affect))
	}, nil)
}
