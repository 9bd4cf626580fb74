package launch

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
)

// rootBus is the root bus of q35 and the virt machines.
const rootBus = "pcie.0"

// placement assigns the NICs' places, with unique names.
type placement struct {
	kind  qemu.Place
	taken qemu.Taken
}

// placement reserves the NICs' own ids, so that no port gets one of them.
func (c Config) placement(guest, argv []string) (placement, error) {
	p := placement{kind: qemu.Place(c.Place).Of(guest), taken: qemu.ReadTaken(slices.Concat(argv[1:], guest))}
	for _, n := range c.NICs {
		for _, id := range []string{n.Device.ID, netdevID(n.Device)} {
			if p.taken.IDs[id] {
				return p, fmt.Errorf("NIC %s: the id %s is taken (give the NIC another --nic)", n.Name, id)
			}
			p.taken.IDs[id] = true
		}
	}
	return p, nil
}

// place returns the device with its bus, and the arguments that make the bus.
func (p placement) place(n qmp.NIC) (device qmp.NIC, port []string, err error) {
	n = ownPlace(n)
	n.Model = cmp.Or(n.Model, p.kind.Model())
	if p.kind == qemu.PlacePCIe && n.Bus == "" && n.Addr == "" && onPCI(n.Model) {
		n.Bus, port, err = p.port()
	}
	return n, port, err
}

// ownPlace moves bus and addr from the options to their fields.
func ownPlace(n qmp.NIC) qmp.NIC {
	n.Options = maps.Clone(n.Options)
	for name, field := range map[string]*string{"bus": &n.Bus, "addr": &n.Addr} {
		if value, ok := n.Options[name]; ok {
			*field = value
			delete(n.Options, name)
		}
	}
	return n
}

// onPCI reports whether a model is a PCI device, as nearly all of QEMU's NICs are.
func onPCI(model string) bool {
	return !slices.Contains([]string{
		"virtio-net-device", "virtio-net-ccw", "usb-net", "ne2k_isa", "spapr-vlan",
		"xen-net-device",
	}, model)
}

// port makes a root port. Its pair of chassis and slot must be unique (pcie_chassis_add_slot in
// QEMU's hw/pci/pcie_port.c), and the guest may name its NICs by the chassis.
func (p placement) port() (id string, args []string, err error) {
	chassis := 1
	for chassis <= 255 && p.taken.Chassis[uint8(chassis)] {
		chassis++
	}
	if chassis > 255 {
		return "",
			nil, fmt.Errorf("all 255 chassis numbers of PCI ports are taken (place the NIC with --device-opt bus=ID)")
	}
	for i := 0; id == "" || p.taken.IDs[id]; i++ {
		id = fmt.Sprintf("vmnet-port%d", i)
	}
	p.taken.Chassis[uint8(chassis)], p.taken.IDs[id] = true, true
	return id, []string{"-device", fmt.Sprintf("pcie-root-port,id=%s,bus=%s,chassis=%d", id, rootBus, chassis)}, nil
}

// spare makes empty ports, if the machine can have any.
func (p placement) spare(count int) (args []string, err error) {
	for range count {
		if p.kind != qemu.PlacePCIe {
			break
		}
		_, port, err := p.port()
		if err != nil {
			return nil, err
		}
		args = append(args, port...)
	}
	return args, nil
}

func netdevID(n qmp.NIC) string {
	if n.Netdev == "" {
		return qmp.NetdevID(n.ID)
	}
	return n.Netdev
}
