package libvirt

import (
	"context"
	"fmt"
)

// InterfaceStats are the counters of a domain's interface since it was made, as its guest
// counts: what the guest received is Rx. A counter that the driver does not have is -1.
type InterfaceStats struct {
	RxBytes, RxPackets, RxErrors, RxDropped int64
	TxBytes, TxPackets, TxErrors, TxDropped int64
}

// AddressSource is who says which addresses a domain has: virDomainInterfaceAddressesSource.
type AddressSource uint32

// The sources.
const (
	FromLeases AddressSource = 0 // libvirt's own DHCP server
	FromAgent  AddressSource = 1 // the guest agent
	FromARP    AddressSource = 2 // the host's neighbour table; where that is empty, libvirt 9.0 has an error
)

// InterfaceAddresses are the addresses of one of a domain's interfaces.
type InterfaceAddresses struct {
	Name      string   // the host's name of it; the guest's where its agent tells
	MAC       string   // may be empty
	Addresses []string // with their prefix lengths: "192.0.2.1/24"
}

var (
	domainInterfaceStats     = procedure{remoteProgram, 65, "DOMAIN_INTERFACE_STATS"}
	domainInterfaceAddresses = procedure{remoteProgram, 353, "DOMAIN_INTERFACE_ADDRESSES"}
)

// InterfaceStats reads the counters of an interface, named by its device on the host or its MAC.
func (c *Conn) InterfaceStats(ctx context.Context, dom Domain, device string) (s InterfaceStats, err error) {
	err = c.call(ctx, domainInterfaceStats, func(e *encoder) {
		e.domain(dom)
		e.string(device)
	}, func(d *decoder) {
		for _, v := range []*int64{
			&s.RxBytes, &s.RxPackets, &s.RxErrors, &s.RxDropped,
			&s.TxBytes, &s.TxPackets, &s.TxErrors, &s.TxDropped,
		} {
			*v = int64(d.hyper())
		}
	})
	return s, err
}

// InterfaceAddresses asks source for the addresses of all of a running domain's interfaces.
func (c *Conn) InterfaceAddresses(ctx context.Context, dom Domain, source AddressSource) ([]InterfaceAddresses, error) {
	var all []InterfaceAddresses
	err := c.call(ctx, domainInterfaceAddresses, func(e *encoder) {
		e.domain(dom)
		e.uint32(uint32(source))
		e.uint32(0)
	}, func(d *decoder) {
		for range d.count(maxAddrs, 12) {
			all = append(all, d.interfaceAddresses())
		}
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

func (d *decoder) interfaceAddresses() InterfaceAddresses {
	i := InterfaceAddresses{Name: d.string(), MAC: d.optionalString()}
	for range d.count(maxAddrs, 12) {
		d.int32() // virIPAddrType, which the address itself shows
		address, prefix := d.string(), d.uint32()
		i.Addresses = append(i.Addresses, fmt.Sprintf("%s/%d", address, prefix))
	}
	return i
}
