package libvirt

import (
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Kind is the kind of an event: virDomainEventID.
type Kind int32

// The kinds to which a client can subscribe.
const (
	Lifecycle           = Kind(golibvirt.DomainEventIDLifecycle)
	DeviceRemoved       = Kind(golibvirt.DomainEventIDDeviceRemoved) // the guest has released it
	DeviceAdded         = Kind(golibvirt.DomainEventIDDeviceAdded)
	DeviceRemovalFailed = Kind(golibvirt.DomainEventIDDeviceRemovalFailed) // the guest refused to release it
	MetadataChange      = Kind(golibvirt.DomainEventIDMetadataChange)      // running or stored

	Monitor Kind = -1 // an event of QEMU; see Conn.SubscribeMonitor
)

// Change is what happened to a domain: virDomainEventType.
type Change int32

// The changes (VIR_DOMAIN_EVENT_...).
const (
	Defined     = Change(golibvirt.DomainEventDefined)
	Undefined   = Change(golibvirt.DomainEventUndefined)
	Started     = Change(golibvirt.DomainEventStarted)
	Suspended   = Change(golibvirt.DomainEventSuspended)
	Resumed     = Change(golibvirt.DomainEventResumed)
	Stopped     = Change(golibvirt.DomainEventStopped)
	Shutdown    = Change(golibvirt.DomainEventShutdown)
	PMSuspended = Change(golibvirt.DomainEventPmsuspended)
	Crashed     = Change(golibvirt.DomainEventCrashed)
)

// Event is what libvirt reports about a domain.
type Event struct {
	Kind   Kind
	Domain Domain
	Change Change // for Lifecycle
	Detail int32  // of Change: virDomainEventStoppedDetailType and so on
	Device string // the device's alias, for the kinds about a device
	URI    string // for MetadataChange: the element's namespace, or empty for a title or description

	Name    string    // for Monitor: the name in QAPI, such as "DEVICE_DELETED"
	Details string    // for Monitor: a JSON object, or empty
	Time    time.Time // for Monitor: by QEMU's clock
}

// domainMonitorEvent is the number of QEMU_PROC_DOMAIN_MONITOR_EVENT.
const domainMonitorEvent = 6

// kindOf returns the kind of event of REMOTE_PROC_DOMAIN_EVENT_CALLBACK_... or
// QEMU_PROC_DOMAIN_MONITOR_EVENT.
func kindOf(program uint32, procedure int32) (Kind, bool) {
	if program == qemuProgram {
		return Monitor, procedure == domainMonitorEvent
	}
	switch procedure {
	case 318: // ..._LIFECYCLE
		return Lifecycle, true
	case 333: // ..._DEVICE_REMOVED
		return DeviceRemoved, true
	case 354: // ..._DEVICE_ADDED
		return DeviceAdded, true
	case 367: // ..._DEVICE_REMOVAL_FAILED
		return DeviceRemovalFailed, true
	case 379: // ..._METADATA_CHANGE
		return MetadataChange, true
	}
	return 0, false
}

func decodeEvent(kind Kind, payload []byte) (callback int32, e Event, err error) {
	d := decoder{buf: payload}
	callback = d.int32()
	e = Event{Kind: kind, Domain: d.domain()}
	switch kind {
	case Lifecycle:
		e.Change, e.Detail = Change(d.int32()), d.int32()
	case MetadataChange:
		d.int32() // virDomainMetadataType
		e.URI = d.optionalString()
	case Monitor:
		d.monitorEvent(&e)
	default:
		e.Device = d.string()
	}
	return callback, e, d.end()
}

// monitorEvent reads the part of qemu_domain_monitor_event_msg after the domain.
func (d *decoder) monitorEvent(e *Event) {
	e.Name = d.string()
	seconds, micros := int64(d.hyper()), int64(d.uint32())
	if seconds > 0 { // -1 if the host's clock failed
		e.Time = time.Unix(seconds, micros*1000)
	}
	// Many events may wait in a Subscription, and QEMU may be under the control of a hostile guest.
	if details := d.optionalString(); len(details) <= maxDetails {
		e.Details = details
	}
}

// maxDetails bounds the details of a QEMU event that are copied, in bytes: QEMU's own have fewer
// than a thousand, and libvirt passes on up to 4 MiB. An event that long counts as lost (maxEvent).
const maxDetails = 64 << 10
