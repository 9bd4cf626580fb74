package libvirt

import (
	"context"

	golibvirt "github.com/digitalocean/go-libvirt"

	"vmnet/libvirt/domainxml"
)

// Domain names a guest. libvirt identifies it by the UUID.
type Domain struct {
	Name string
	UUID domainxml.UUID
	ID   int32 // -1 if it was not running when this was read
}

// to returns the domain in go-libvirt's form.
func (d Domain) to() golibvirt.Domain {
	return golibvirt.Domain{Name: d.Name, UUID: golibvirt.UUID(d.UUID), ID: d.ID}
}

func domainFrom(d golibvirt.Domain) Domain {
	return Domain{d.Name, domainxml.UUID(d.UUID), d.ID}
}

// ListFlags select domains by groups: virConnectListAllDomainsFlags. 0 selects all.
type ListFlags uint32

// Domains that run, and domains that do not.
const (
	ListActive   = ListFlags(golibvirt.ConnectListDomainsActive)
	ListInactive = ListFlags(golibvirt.ConnectListDomainsInactive)
)

// XMLFlags select the content of a domain's XML: virDomainXMLFlags. 0 is the domain's current
// state.
type XMLFlags uint32

// XMLInactive is the configuration for the domain's next start.
const XMLInactive = XMLFlags(golibvirt.DomainXMLInactive)

// Affect selects what a change affects: the running domain, its stored definition, or both
// (virDomainModificationImpact).
type Affect uint32

// What a change affects. With AffectLive, a domain that is not running is an error that matches
// ErrOperationInvalid, as is a transient one with AffectConfig.
const (
	AffectCurrent = Affect(golibvirt.DomainAffectCurrent) // the running domain, or else its definition
	AffectLive    = Affect(golibvirt.DomainAffectLive)
	AffectConfig  = Affect(golibvirt.DomainAffectConfig)
)

var (
	connectListAllDomains   = procedure{remoteProgram, 273, "CONNECT_LIST_ALL_DOMAINS", domainList}
	domainLookupByName      = procedure{remoteProgram, 23, "DOMAIN_LOOKUP_BY_NAME", aDomain}
	domainLookupByUUID      = procedure{remoteProgram, 24, "DOMAIN_LOOKUP_BY_UUID", aDomain}
	domainGetXMLDesc        = procedure{remoteProgram, 14, "DOMAIN_GET_XML_DESC", aString}
	domainIsPersistent      = procedure{remoteProgram, 151, "DOMAIN_IS_PERSISTENT", aNumber}
	domainGetState          = procedure{remoteProgram, 212, "DOMAIN_GET_STATE", twoNumbers}
	domainAttachDeviceFlags = procedure{remoteProgram, 160, "DOMAIN_ATTACH_DEVICE_FLAGS", nil}
	domainUpdateDeviceFlags = procedure{remoteProgram, 174, "DOMAIN_UPDATE_DEVICE_FLAGS", nil}
	domainDetachDeviceAlias = procedure{remoteProgram, 392, "DOMAIN_DETACH_DEVICE_ALIAS", nil}
)

func domainList(d *decoder) {
	for range d.count(maxList, minDomain) {
		d.domain()
	}
	d.uint32() // how many
}

// ListDomains returns the domains that flags select, in no particular order.
func (c *Conn) ListDomains(ctx context.Context, flags ListFlags) ([]Domain, error) {
	p := &call{procedure: connectListAllDomains}
	all, err := ask(ctx, c, p, func() ([]golibvirt.Domain, error) {
		const domains = 1 // and not only their number
		all, _, err := c.lib.ConnectListAllDomains(domains, golibvirt.ConnectListAllDomainsFlags(flags))
		return all, err
	})
	var domains []Domain
	for _, d := range all {
		domains = append(domains, domainFrom(d))
	}
	return domains, err
}

// LookupByName finds a domain, running or not. If there is none, the error matches [ErrNoDomain].
func (c *Conn) LookupByName(ctx context.Context, name string) (Domain, error) {
	p := &call{procedure: domainLookupByName, text: []string{name}}
	dom, err := ask(ctx, c, p, func() (golibvirt.Domain, error) {
		return c.lib.DomainLookupByName(name)
	})
	return domainFrom(dom), err
}

// LookupByUUID is [Conn.LookupByName] by the UUID.
func (c *Conn) LookupByUUID(ctx context.Context, uuid domainxml.UUID) (Domain, error) {
	p := &call{procedure: domainLookupByUUID}
	dom, err := ask(ctx, c, p, func() (golibvirt.Domain, error) {
		return c.lib.DomainLookupByUUID(golibvirt.UUID(uuid))
	})
	return domainFrom(dom), err
}

// XML returns the domain's XML, which [domainxml.Parse] reads.
func (c *Conn) XML(ctx context.Context, dom Domain, flags XMLFlags) (string, error) {
	p := &call{procedure: domainGetXMLDesc, text: []string{dom.Name}}
	return ask(ctx, c, p, func() (string, error) {
		return c.lib.DomainGetXMLDesc(dom.to(), golibvirt.DomainXMLFlags(flags))
	})
}

// IsPersistent reports whether libvirt keeps the domain when it is off.
func (c *Conn) IsPersistent(ctx context.Context, dom Domain) (bool, error) {
	p := &call{procedure: domainIsPersistent, text: []string{dom.Name}}
	persistent, err := ask(ctx, c, p, func() (int32, error) {
		return c.lib.DomainIsPersistent(dom.to())
	})
	return persistent == 1, err
}

// State is a domain's state: virDomainState, and why it is paused.
type State struct {
	is     golibvirt.DomainState
	paused golibvirt.DomainPausedReason // if it is
}

// IsIncoming reports whether the domain's guest is still to come from another host. The domain that
// a guest is about to leave is in the same state while the last of the guest's data is sent.
func (s State) IsIncoming() bool {
	return s.is == golibvirt.DomainPaused &&
		(s.paused == golibvirt.DomainPausedMigration || s.paused == golibvirt.DomainPausedStartingUp)
}

// IsOff reports whether the domain does not run.
func (s State) IsOff() bool {
	return s.is == golibvirt.DomainShutoff || s.is == golibvirt.DomainCrashed
}

// State returns the domain's state. libvirt answers while the domain migrates, too.
func (c *Conn) State(ctx context.Context, dom Domain) (State, error) {
	p := &call{procedure: domainGetState, text: []string{dom.Name}}
	return ask(ctx, c, p, func() (State, error) {
		is, reason, err := c.lib.DomainGetState(dom.to(), 0)
		return State{golibvirt.DomainState(is), golibvirt.DomainPausedReason(reason)}, err
	})
}

// AttachDevice adds a device. A running guest may not have noticed it when AttachDevice returns.
func (c *Conn) AttachDevice(ctx context.Context, dom Domain, xml string, affect Affect) error {
	return c.call(ctx, domainAttachDeviceFlags, func() error {
		return c.lib.DomainAttachDeviceFlags(dom.to(), xml, uint32(affect))
	}, dom.Name, xml)
}

// UpdateDevice makes a device as xml describes it, which names a NIC by its MAC. libvirt refuses
// what it cannot change; of a NIC that runs it can change the state of the link.
func (c *Conn) UpdateDevice(ctx context.Context, dom Domain, xml string, affect Affect) error {
	return c.call(ctx, domainUpdateDeviceFlags, func() error {
		return c.lib.DomainUpdateDeviceFlags(dom.to(), xml, golibvirt.DomainDeviceModifyFlags(affect))
	}, dom.Name, xml)
}

// DetachDeviceAlias asks for the removal of the device with that alias, and does not wait for it:
// the device is gone once the guest has released it. [DeviceRemoved] or [DeviceRemovalFailed]
// reports the outcome, as does the XML. Until then QEMU refuses another request. If the domain
// has no such device, the error is an [*Error]; libvirt 9.0 has no code of its own for it.
func (c *Conn) DetachDeviceAlias(ctx context.Context, dom Domain, alias string, affect Affect) error {
	return c.call(ctx, domainDetachDeviceAlias, func() error {
		return c.lib.DomainDetachDeviceAlias(dom.to(), alias, uint32(affect))
	}, dom.Name, alias)
}
