package guest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/inventory"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/macvtap/vtap"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Plan writes the XML with which libvirt is asked. What makes the NIC come back is declared before,
// and stored after the interface is there.
func (d *Domain) Plan(ctx context.Context, n *backend.NIC) (Handover, error) {
	device := n.Interface.Name
	keep, err := d.Keep(ctx, n.Spec, n.Record, device, false)
	if err != nil {
		return Handover{}, err
	}
	xml, err := ethernet(n.Record, device).XML()
	if err != nil {
		return Handover{}, err
	}
	plug := []step.Step{d.attachStep(n.Record.NIC, xml)}
	if n.Spec.Lower == nil { // a macvtap stays until it is detached, or reconciled
		plug = append(plug, d.lifetimeStep(n.Record, device))
	}
	return Handover{
		Opener:  d.user,
		Notices: d.costOfNoHook(n.Record, len(keep.Store) > 0),
		Steps:   slices.Concat(keep.Declare, plug, keep.Store),
	}, nil
}

func (d *Domain) attachStep(nicID, xml string) step.Step {
	return step.Step{
		Name: "attach-device",
		Text: fmt.Sprintf("libvirt: attach %s to %s: %s", nic.LibvirtAlias(nicID), d.dom.Name, xml),
		Do: func(ctx context.Context) error {
			return explainRefusal(d.AttachDevice(ctx, d.dom, xml, libvirt.AffectLive))
		},
		Undo: func(ctx context.Context) error { return d.undoAttach(ctx, nicID) },
	}
}

func (d *Domain) lifetimeStep(r nic.Record, device string) step.Step {
	return step.Step{
		Name: "lifetime",
		Text: fmt.Sprintf("TUNSETPERSIST 0 on a copy of QEMU's own fd of %s", device),
		Do: func(context.Context) error {
			link, err := d.maker.NL.Link(device)
			if err != nil {
				return err
			}
			return d.maker.ClearPersist(&inventory.Device{Link: link, Want: r}, d.found.PID())
		},
	}
}

// storedXML returns the XML of a NIC as libvirt stores it: at the guest's start libvirt makes the
// device itself, and the hook adopts it. So a clone of the guest gets a device of its own:
// virt-clone removes the device's name, without which libvirt opens no existing device
// (managed='no').
func storedXML(spec nic.Spec, r nic.Record, device string) (string, error) {
	x := ethernet(r, device)
	x.Managed = nic.HasTap(r.Type)
	if mode, ok := directMode(spec.Lower, r.MTU); ok {
		x.Managed, x.Parent, x.Mode = true, r.Source, mode
	}
	return x.XML()
}

// directMode returns libvirt's name for the mode of a macvtap that libvirt makes, and the hook then
// adopts. Mode source, which libvirt does not have, begins as a mode that receives as little. ok is
// false without a macvtap; if the NIC has an MTU, which libvirt refuses
// (qemuDomainNetSupportsMTU in src/qemu/qemu_domain.c); and if the parent device is not to
// become promiscuous: the kernel loses count of that if it is changed while the device is down
// (macvlan_changelink in drivers/net/macvlan.c).
func directMode(l *nic.Lower, mtu int) (mode string, ok bool) {
	switch {
	case l == nil, l.Kind != vtap.Macvtap, l.NoPromisc, mtu != 0:
		return "", false
	case l.Mode == "passthru":
		return "passthrough", true
	case l.Mode == "source":
		return "private", true
	}
	return l.Mode, true
}

// ethernet describes a NIC as libvirt's XML does.
func ethernet(r nic.Record, device string) domainxml.Ethernet {
	driver := ""
	if nic.IsVirtio(r.Model) {
		driver = "qemu"
		if r.Vhost {
			driver = "vhost"
		}
	}
	return domainxml.Ethernet{
		Tap: device, MAC: r.MAC, Model: nic.LibvirtModel(r.Model), Queues: r.Queues, MTU: r.MTU, Driver: driver,
		Alias: nic.LibvirtAlias(r.NIC), LinkDown: r.LinkDown,
	}
}

// undoAttach undoes an attach, even if it is not known whether libvirt has completed it.
func (d *Domain) undoAttach(ctx context.Context, nicID string) error {
	ctx, cancel := context.WithTimeout(ctx, backend.ReleaseWait)
	defer cancel()
	return d.Unplug(ctx, nicID, func(time.Duration) {})
}

// explanations explain refusals of libvirt and QEMU to plug or unplug a NIC that name no cure, by a
// part of their texts: those of virDomainPCIAddressGetNextAddr in libvirt's src/conf/domain_addr.c,
// virDomainObjBeginJobInternal in src/conf/virdomainjob.c, virNetDevTapCreate in
// src/util/virnetdevtap.c, and QEMU's.
var explanations = []struct{ part, own string }{
	{
		"No more available PCI slots",
		"the guest has no free PCI port: give it some while it is off, <controller type='pci' " +
			"model='pcie-root-port'/> for each NIC (virsh edit), or detach another device",
	},
	{
		"does not support hotplugging",
		"the guest's machine takes no devices while it runs: give it PCI Express root ports (virsh edit), or " +
			"<acpi/> among its features",
	},
	{"vhost-net was requested", "libvirt cannot use vhost-net: attach with --vhost off"},
	{
		"cannot acquire state change lock",
		"libvirt is busy with another job for this domain: try again when that has ended (virsh domjobinfo)",
	},
	{
		"not allowed while migrating",
		"the guest is being migrated or saved: try again when that has ended (virsh domjobinfo)",
	},
	{
		"is tun module loaded?",
		"libvirt cannot open /dev/net/tun: load the module (modprobe tun), or give libvirt the device " +
			"(cgroup_device_acl in qemu.conf)",
	},
	{"Too many open files", "libvirt may open no more files: raise LimitNOFILE= of its service"},
	{
		"operation forbidden for read only access",
		"this user may only look at libvirt's domains: run vmnet as root, or join the group libvirt",
	},
	{"authentication unavailable", "this user may not use libvirt: run vmnet as root, or join the group libvirt"},
	{
		"access denied",
		"this user may not change the domain: run vmnet as root, or have libvirt's policy allow it (polkit)",
	},
}

// explainRefusal puts the explanation and the cure before libvirt's error.
func explainRefusal(err error) error {
	var refusal *libvirt.Error
	if !errors.As(err, &refusal) {
		return err
	}
	for _, x := range explanations {
		if strings.Contains(refusal.Message, x.part) {
			return fmt.Errorf("%s (%w)", x.own, err)
		}
	}
	return err
}
