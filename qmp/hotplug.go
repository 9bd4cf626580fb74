package qmp

import (
	"context"
	"errors"
	"os"
	"strings"
)

// peripheral is the QOM path of the devices that have an id.
const peripheral = "/machine/peripheral"

// GetFD gives QEMU a copy of f under a name (getfd). The name must not start with a digit; QEMU
// closes a former fd of that name. The name outlives the connection.
func (c *Conn) GetFD(ctx context.Context, name string, f *os.File) error {
	return c.ExecuteFD(ctx, "getfd", fdName(name), f, nil)
}

// CloseFD makes QEMU close the fd of that name (closefd). It is success if there is no such name,
// for example because netdev_add has taken the fd.
func (c *Conn) CloseFD(ctx context.Context, name string) error {
	return unlessGone(c.Execute(ctx, "closefd", fdName(name), nil))
}

// NetdevAdd makes a network backend (netdev_add, NetdevInfo in qapi/net.json). Success proves
// little: with vhost, QEMU 7.2 may only warn and have made nothing; the following device_add then
// fails.
func (c *Conn) NetdevAdd(ctx context.Context, args map[string]any) error {
	return c.Execute(ctx, "netdev_add", args, nil)
}

// NetdevDel removes a network backend (netdev_del) and closes its fds: at once in QEMU 7.2, in
// newer versions when its device goes. It is success if there is no such backend.
func (c *Conn) NetdevDel(ctx context.Context, id string) error {
	return unlessGone(c.Execute(ctx, "netdev_del", idArg(id), nil))
}

// DeviceAdd plugs a device (device_add). Since 9.2 QEMU insists on the JSON types of the
// properties; earlier versions also take strings for all of them.
func (c *Conn) DeviceAdd(ctx context.Context, args map[string]any) error {
	return c.Execute(ctx, "device_add", args, nil)
}

// HasDevice reports whether the guest has a device of that id (qom-list). A device that is being
// unplugged is there until the guest has released it.
func (c *Conn) HasDevice(ctx context.Context, id string) (bool, error) {
	devices, err := c.qomList(ctx, peripheral)
	return strings.HasPrefix(devices[id], "child<"), err
}

// CPUs returns the number of the guest's virtual CPUs (query-cpus-fast).
func (c *Conn) CPUs(ctx context.Context) (int, error) {
	var cpus []struct{}
	err := c.Execute(ctx, "query-cpus-fast", nil, &cpus)
	return len(cpus), err
}

// Name returns the guest's name, from QEMU's -name (query-name); empty if it has none.
func (c *Conn) Name(ctx context.Context) (string, error) {
	var reply struct {
		Name string `json:"name"`
	}
	err := c.Execute(ctx, "query-name", nil, &reply)
	return reply.Name, err
}

// RxFilter is what the guest's driver has asked its NIC to receive (RxFilterInfo in
// qapi/net.json). States are "normal", "none" or "all".
type RxFilter struct {
	Name              string   `json:"name"`
	MainMAC           string   `json:"main-mac"`
	Promiscuous       bool     `json:"promiscuous"`
	BroadcastAllowed  bool     `json:"broadcast-allowed"`
	Unicast           string   `json:"unicast"`
	Multicast         string   `json:"multicast"`
	VLAN              string   `json:"vlan"`
	UnicastOverflow   bool     `json:"unicast-overflow"`
	MulticastOverflow bool     `json:"multicast-overflow"`
	UnicastTable      []string `json:"unicast-table"`
	MulticastTable    []string `json:"multicast-table"`
	VLANTable         []int    `json:"vlan-table"`
}

// RxFilter returns the receive filter of a NIC (query-rx-filter), and with it
// re-arms the event NIC_RX_FILTER_CHANGED. Not all models have one; virtio has.
func (c *Conn) RxFilter(ctx context.Context, device string) (RxFilter, error) {
	var filters [1]RxFilter // further ones, of which a short text can make many, are skipped
	if err := c.Execute(ctx, "query-rx-filter", map[string]any{"name": device}, &filters); err != nil {
		return RxFilter{}, err
	}
	if filters[0].Name != device {
		return RxFilter{}, &Error{Command: "query-rx-filter", Class: "GenericError", Desc: "no filter for " + device}
	}
	return filters[0], nil
}

// objects maps the properties of an object in QOM, its children among them, to their types.
type objects map[string]string

// qomList lists an object's properties (qom-list).
func (c *Conn) qomList(ctx context.Context, path string) (objects, error) {
	var list []struct{ Name, Type string }
	if err := c.Execute(ctx, "qom-list", map[string]any{"path": path}, &list); err != nil {
		return nil, err
	}
	types := make(objects, len(list))
	for _, p := range list {
		types[p.Name] = p.Type
	}
	return types, nil
}

// qomGet reads an object's property (qom-get).
func (c *Conn) qomGet(ctx context.Context, path, property string, value any) error {
	return c.Execute(ctx, "qom-get", map[string]any{"path": path, "property": property}, value)
}

// unlessGone returns nil for QEMU's reply that an object is not there. For netdev_del and
// device_del that is class DeviceNotFound; for closefd there is only the text "File descriptor
// named 'x' not found".
func unlessGone(err error) error {
	var e *Error
	if errors.As(err, &e) && (errors.Is(e, ErrDeviceNotFound) ||
		e.Command == "closefd" && strings.Contains(e.Desc, "not found")) {
		return nil
	}
	return err
}

func fdName(name string) map[string]any { return map[string]any{"fdname": name} }

func idArg(id string) map[string]any { return map[string]any{"id": id} }
