package libvirt

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
)

// UUID is a domain's.
type UUID [16]byte

// ParseUUID reads the usual form, 36 characters.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	digits := strings.ReplaceAll(s, "-", "")
	if len(s) == 36 && len(digits) == 2*len(u) {
		if _, err := hex.Decode(u[:], []byte(digits)); err == nil && u.String() == strings.ToLower(s) {
			return u, nil
		}
	}
	return UUID{}, fmt.Errorf("UUID %q: want 8-4-4-4-12 hex digits", cut(s))
}

func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// Domain names a guest. Libvirt goes by the UUID.
type Domain struct {
	Name string
	UUID UUID
	ID   int32 // -1 where it did not run when this was read
}

// State is a domain's: virDomainState.
type State int32

// The states (VIR_DOMAIN_...).
const (
	StateNone        State = 0
	StateRunning     State = 1
	StateBlocked     State = 2
	StatePaused      State = 3
	StateShutdown    State = 4 // on its way to off
	StateOff         State = 5
	StateCrashed     State = 6
	StatePMSuspended State = 7
)

// Running tells whether there is a VMM.
func (s State) Running() bool {
	return s == StateRunning || s == StateBlocked || s == StatePaused || s == StateShutdown || s == StatePMSuspended
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
	XMLSecure   XMLFlags = 1 << 0 // with passwords
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
	connectGetLibVersion    = procedure{remoteProgram, 157, "CONNECT_GET_LIB_VERSION"}
	connectListAllDomains   = procedure{remoteProgram, 273, "CONNECT_LIST_ALL_DOMAINS"}
	domainLookupByName      = procedure{remoteProgram, 23, "DOMAIN_LOOKUP_BY_NAME"}
	domainLookupByUUID      = procedure{remoteProgram, 24, "DOMAIN_LOOKUP_BY_UUID"}
	domainGetXMLDesc        = procedure{remoteProgram, 14, "DOMAIN_GET_XML_DESC"}
	domainGetState          = procedure{remoteProgram, 212, "DOMAIN_GET_STATE"}
	domainIsPersistent      = procedure{remoteProgram, 151, "DOMAIN_IS_PERSISTENT"}
	domainAttachDeviceFlags = procedure{remoteProgram, 160, "DOMAIN_ATTACH_DEVICE_FLAGS"}
	domainDetachDeviceFlags = procedure{remoteProgram, 161, "DOMAIN_DETACH_DEVICE_FLAGS"}
	domainUpdateDeviceFlags = procedure{remoteProgram, 174, "DOMAIN_UPDATE_DEVICE_FLAGS"}
	domainDetachDeviceAlias = procedure{remoteProgram, 392, "DOMAIN_DETACH_DEVICE_ALIAS"}

	connectDomainEventCallbackRegisterAny   = procedure{remoteProgram, 316, "CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY"}
	connectDomainEventCallbackDeregisterAny = procedure{remoteProgram, 317, "CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY"}
)

// LibVersion is the daemon's: 9, 0, 0.
func (c *Conn) LibVersion(ctx context.Context) (major, minor, micro int, err error) {
	var v uint64
	err = c.call(ctx, connectGetLibVersion, nil, func(d *decoder) { v = d.hyper() })
	return int(v / 1e6), int(v / 1e3 % 1e3), int(v % 1e3), err
}

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
func (c *Conn) LookupByUUID(ctx context.Context, uuid UUID) (dom Domain, err error) {
	err = c.call(ctx, domainLookupByUUID, func(e *encoder) { e.buf = append(e.buf, uuid[:]...) }, func(d *decoder) { dom = d.domain() })
	return dom, err
}

// XML describes the domain; [ParseDefinition] reads it.
func (c *Conn) XML(ctx context.Context, dom Domain, flags XMLFlags) (xml string, err error) {
	err = c.call(ctx, domainGetXMLDesc, func(e *encoder) {
		e.domain(dom)
		e.uint32(uint32(flags))
	}, func(d *decoder) { xml = d.string() })
	return xml, err
}

// State is the domain's state and why: virDomainRunningReason and so on.
func (c *Conn) State(ctx context.Context, dom Domain) (state State, reason int32, err error) {
	err = c.call(ctx, domainGetState, func(e *encoder) {
		e.domain(dom)
		e.uint32(0)
	}, func(d *decoder) { state, reason = State(d.int32()), d.int32() })
	return state, reason, err
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

// UpdateDevice changes a device that is there, as far as libvirt can.
func (c *Conn) UpdateDevice(ctx context.Context, dom Domain, xml string, affect Affect) error {
	return c.changeDevice(ctx, domainUpdateDeviceFlags, dom, xml, affect)
}

// DetachDevice asks for a device's removal; libvirt finds it by MAC and address. It is gone
// once the guest has let it go; libvirt waits five seconds for that, and returns no error either
// way. [DeviceRemoved] or [DeviceRemovalFailed] tells; or the XML. Until then another request is an
// error of QEMU's. That there is no such device Is [ErrDeviceMissing].
func (c *Conn) DetachDevice(ctx context.Context, dom Domain, xml string, affect Affect) error {
	return c.changeDevice(ctx, domainDetachDeviceFlags, dom, xml, affect)
}

// DetachDeviceAlias is [Conn.DetachDevice] by the alias, without waiting. That there is no such
// device is an [*Error], but libvirt 9.0 has no code of its own for that here.
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
