package qmp

import (
	"context"
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
	{"pci-device", ""},
	{"virtio-ccw-device", ""},
	{"usb-device", ""},
	{"virtio-device", "a virtio-mmio transport, which takes a device only when the guest is started"},
	{"isa-device", "an ISA bus, which takes devices only when the guest is started"},
	{"vio-spapr-device", "pSeries' bus of virtual devices, which takes devices only when the guest is started"},
	{"sys-bus-device", "the board, which has its own and takes no further one"},
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
		case ancestor == "pci-device":
			return c.FreePort(ctx)
		case ancestor != "":
			return Port{}, nil
		}
	}
	return Port{}, fmt.Errorf("this QEMU has no device %q (-device help lists those that it has)", model)
}

// family returns the type that a model descends from; empty if QEMU does not have the model.
func (c *Conn) family(ctx context.Context, model string) (ancestor, only string, err error) {
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

// BestModel returns the NIC model that guests of this QEMU drive fastest: virtio's for channel I/O,
// PCI or virtio-mmio.
func (c *Conn) BestModel(ctx context.Context) (string, error) {
	for _, model := range aliases["virtio-net"] {
		types, err := c.typesOf(ctx, model)
		if err != nil || types[model] {
			return model, err
		}
	}
	return DefaultModel, nil
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
