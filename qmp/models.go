package qmp

import (
	"context"
	"errors"
	"fmt"
)

// CCWModel is the NIC model of a machine with channel I/O (s390x).
const CCWModel = "virtio-net-ccw"

// aliases are other names of models (qdev_alias_table in QEMU's softmmu/qdev-monitor.c).
var aliases = map[string][]string{
	"e1000-82540em": {"e1000"},
	"virtio-net":    {CCWModel, DefaultModel, "virtio-net-device"}, // the first that there is
}

// families are the kinds of models, by the QOM type from which those of one bus descend, the likely
// ones first. only says why a device of that kind comes when the machine starts, or not at all; it
// is empty if one can be hot-plugged.
var families = []struct{ ancestor, only string }{
	{pciDevice, ""},
	{"virtio-ccw-device", ""},
	{"usb-device", ""},
	{"virtio-device", "a virtio-mmio transport, which takes a device only when the guest is started"},
	{"isa-device", "an ISA bus, which takes devices only when the guest is started"},
	{"vio-spapr-device", "pSeries' bus of virtual devices, which takes devices only when the guest is started"},
	{"sys-bus-device", "the board, which has its own and takes no further one"},
}

// pciDevice is the QOM type of all devices on PCI.
const pciDevice = "pci-device"

// usual are the models that people ask for, with the type that each descends from. They need no
// list of QEMU's types, for which a QEMU of several modules loads them all: about 20 ms, once.
var usual = map[string]string{
	DefaultModel: pciDevice, "virtio-net-pci-transitional": pciDevice, "virtio-net-pci-non-transitional": pciDevice,
	"e1000": pciDevice, "e1000e": pciDevice, "igb": pciDevice, "rtl8139": pciDevice, "vmxnet3": pciDevice,
	CCWModel: "virtio-ccw-device", "usb-net": "usb-device",
}

// FreePortFor finds where a NIC of that model can be hot-plugged: on PCI like [Conn.FreePort]; on
// channel I/O and USB QEMU chooses, so the Port is empty. The error matches [ErrNoPort] if the
// model can come only with the start of the guest, and not if this QEMU does not have it.
func (c *Conn) FreePortFor(ctx context.Context, model string) (Port, error) {
	names := aliases[model]
	if names == nil {
		names = []string{model}
	}
	for _, name := range names {
		ancestor, only, err := c.family(ctx, name)
		switch {
		case err != nil:
			return Port{}, fmt.Errorf("find a place for a %s: %w", model, err)
		case only != "":
			return Port{},
				fmt.Errorf("%w: a %s sits on %s (choose another --model, or start the guest with it by qemu-netup)",
					ErrNoPort, model, only)
		case ancestor == pciDevice:
			return c.FreePort(ctx)
		case ancestor != "":
			return Port{}, nil
		}
	}
	return Port{}, fmt.Errorf("this QEMU has no device %q (-device help lists those that it has)", model)
}

// family returns the type that a model descends from; empty if QEMU does not have the model.
func (c *Conn) family(ctx context.Context, model string) (ancestor, only string, err error) {
	if ancestor = usual[model]; ancestor != "" {
		if _, err := c.deviceProperties(ctx, model); errors.Is(err, ErrDeviceNotFound) {
			return "", "", nil
		}
		return ancestor, "", err
	}
	for _, f := range families {
		types, err := c.typesOf(ctx, f.ancestor)
		if err != nil {
			return "", "", err
		}
		if types[model] {
			return f.ancestor, f.only, nil
		}
	}
	return "", "", nil
}

// BestModel returns the NIC model that guests of this machine drive fastest: virtio's for channel
// I/O, PCI or virtio-mmio.
func (c *Conn) BestModel(ctx context.Context) (string, error) {
	machine, err := c.machine(ctx)
	if err != nil {
		return "", err
	}
	return c.bestModel(ctx, machine)
}

func (c *Conn) bestModel(ctx context.Context, machine objects) (string, error) {
	switch {
	case machine["virtual-css-bridge"] != "":
		return CCWModel, nil
	case len(machine.children(isHostBridge)) > 0:
		return DefaultModel, nil
	}
	for _, model := range aliases["virtio-net"] {
		types, err := c.typesOf(ctx, model)
		if err != nil || types[model] {
			return model, err
		}
	}
	return DefaultModel, nil
}

// BestPlace returns [Conn.BestModel] and [Conn.FreePortFor] that model, for fewer commands.
func (c *Conn) BestPlace(ctx context.Context) (model string, port Port, err error) {
	machine, err := c.machine(ctx)
	if err == nil {
		model, err = c.bestModel(ctx, machine)
	}
	switch {
	case err != nil:
		return "", Port{}, fmt.Errorf("find the best model: %w", err)
	case model == CCWModel && machine["virtual-css-bridge"] != "":
		return model, Port{}, nil
	case model == DefaultModel:
		port, err = c.freePort(ctx, machine)
	default:
		port, err = c.FreePortFor(ctx, model)
	}
	return model, port, err
}

// typesOf returns the names of the QOM types that descend from one, itself included, and can be
// made (qom-list-types).
func (c *Conn) typesOf(ctx context.Context, ancestor string) (map[string]bool, error) {
	var list []struct{ Name string }
	if err := c.Execute(ctx, "qom-list-types", map[string]any{"implements": ancestor, "abstract": false},
		&list); err != nil {
		return nil, err
	}
	names := make(map[string]bool, len(list))
	for _, t := range list {
		names[t.Name] = true
	}
	return names, nil
}
