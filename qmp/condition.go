package qmp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Condition is how far a virtio NIC works, as its VMM sees it. What is not known is nil: other
// models do not say it, nor does a QEMU older than 7.2.
type Condition struct {
	Driver *bool // the guest's driver has started the device (VIRTIO_CONFIG_S_DRIVER_OK)
	Broken *bool // the driver has broken the rules, and QEMU has stopped the device
	Vhost  *bool // the kernel's vhost moves the frames
	LinkUp *bool // the driver sees a carrier
}

// Condition asks for the condition of a NIC's device. Errors are those of the connection; what QEMU
// refuses to say stays unknown.
func (c *Conn) Condition(ctx context.Context, device string) (found Condition, err error) {
	err = c.virtioStatus(ctx, device, &found)
	if err == nil && found.Driver != nil {
		found.LinkUp, err = c.virtioLink(ctx, device)
	}
	return found, err
}

// virtioStatus reads VirtioStatus (qapi/virtio.json, since QEMU 7.2).
func (c *Conn) virtioStatus(ctx context.Context, device string, found *Condition) error {
	var s struct {
		Broken bool
		Vhost  bool `json:"vhost-started"`
		Status struct{ Statuses [16]string }
	}
	path := "/machine/peripheral/" + device + "/virtio-backend"
	if err := c.Execute(ctx, "x-query-virtio-status", map[string]any{"path": path}, &s); err != nil {
		return unlessRefused(err)
	}
	ready := slices.ContainsFunc(s.Status.Statuses[:], func(text string) bool {
		return strings.HasPrefix(text, "VIRTIO_CONFIG_S_DRIVER_OK")
	})
	found.Driver, found.Broken, found.Vhost = &ready, &s.Broken, &s.Vhost
	return nil
}

// QEMU has no query for set_link. The guest's driver reads it in the device's configuration (struct
// virtio_net_config of include/uapi/linux/virtio_net.h), which QEMU places at a fixed offset of a
// PCI device's BAR 4 (virtio_pci_realize in hw/virtio/virtio-pci.c). To read it has no effect.
const (
	virtioBAR          = 4
	virtioConfigAt     = 0x2000
	virtioStatusAt     = 6 // behind the MAC address
	virtioStatusLinkUp = 1
)

// virtioLink reads whether a PCI device's driver sees a carrier; nil if that is not known, such as
// before the firmware has given the BAR an address.
func (c *Conn) virtioLink(ctx context.Context, device string) (*bool, error) {
	at, err := c.barOf(ctx, device)
	if at == 0 || err != nil {
		return nil, unlessRefused(err)
	}
	var text string
	err = c.Execute(ctx, "human-monitor-command",
		map[string]any{"command-line": fmt.Sprintf("xp /1hx %#x", at+virtioConfigAt+virtioStatusAt)}, &text)
	if err != nil {
		return nil, unlessRefused(err)
	}
	_, value, found := strings.Cut(strings.TrimSpace(text), ": ")
	status, parseErr := strconv.ParseUint(strings.TrimSpace(value), 0, 16)
	if !found || parseErr != nil {
		return nil, nil
	}
	up := status&virtioStatusLinkUp != 0
	return &up, nil
}

// pciFunction is PciDeviceInfo of qapi/pci.json, as far as it is read.
type pciFunction struct {
	ID      string `json:"qdev_id"`
	Regions []struct {
		BAR     int
		Type    string
		Address int64
	}
	Bridge *struct{ Devices []pciFunction } `json:"pci_bridge"`
}

// barOf returns the address of a virtio device's BAR, 0 if it has none.
func (c *Conn) barOf(ctx context.Context, device string) (at int64, err error) {
	var buses []struct{ Devices []pciFunction }
	if err := c.Execute(ctx, "query-pci", nil, &buses); err != nil {
		return 0, err
	}
	for _, b := range buses {
		if d := findPCI(b.Devices, device, maxPCIDepth); d != nil {
			for _, r := range d.Regions {
				if r.BAR == virtioBAR && r.Type == "memory" && r.Address > 0 {
					return r.Address, nil
				}
			}
		}
	}
	return 0, nil
}

// maxPCIDepth bounds how many bridges are behind each other.
const maxPCIDepth = 8

func findPCI(all []pciFunction, id string, depth int) *pciFunction {
	for i := range all {
		d := &all[i]
		if d.ID == id {
			return d
		}
		if d.Bridge != nil && depth > 0 {
			if found := findPCI(d.Bridge.Devices, id, depth-1); found != nil {
				return found
			}
		}
	}
	return nil
}

// unlessRefused returns nil for an error reply of QEMU.
func unlessRefused(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return nil
	}
	return err
}
