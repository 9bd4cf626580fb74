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
	"vmnet/qmp"
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
			return explainPlug(d.AttachDevice(ctx, d.dom, xml, libvirt.AffectLive))
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
	x.Managed = r.Type == nic.TypeTap
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
		Alias: nic.LibvirtAlias(r.NIC),
	}
}

// undoAttach undoes an attach, even if it is not known whether libvirt has completed it.
func (d *Domain) undoAttach(ctx context.Context, nicID string) error {
	ctx, cancel := context.WithTimeout(ctx, backend.ReleaseWait)
	defer cancel()
	return d.Unplug(ctx, nicID, func(time.Duration) {})
}

// askAgain is the time after which a guest that does not answer is asked again: a guest that boots
// drops requests.
const askAgain = time.Second

// UnplugText describes Unplug.
func (d *Domain) UnplugText(nicID string) string {
	return fmt.Sprintf("libvirt: detach %s from %s, again each second until the guest releases it",
		nic.LibvirtAlias(nicID), d.dom.Name)
}

// Unplug asks libvirt to detach the NIC, and again each second until the guest has released it.
func (d *Domain) Unplug(ctx context.Context, nicID string, waiting func(time.Duration)) error {
	events, err := d.Subscribe(ctx, &d.dom, 64, libvirt.DeviceRemoved, libvirt.DeviceRemovalFailed, libvirt.Lifecycle)
	if err != nil {
		return err
	}
	defer events.Close()
	start := time.Now()
	for {
		err := d.RequestUnplug(ctx, nicID)
		if absent, err := d.refused(ctx, nicID, err); absent || err != nil {
			return err
		}
		done, err := d.awaitRemoved(ctx, events, nicID)
		if done || err != nil {
			return err
		}
		waiting(time.Since(start))
	}
}

// refused decides what the refusal of a request means, in any language of libvirt. absent is true
// if the device is not there (any more). The error is nil if the request is pending already.
func (d *Domain) refused(ctx context.Context, nicID string, refusal error) (absent bool, err error) {
	if refusal == nil || isPending(refusal) {
		return false, nil
	}
	if ended := explainStopped(refusal); ended != refusal {
		return false, ended
	}
	has, err := d.Has(ctx, nicID)
	if err == nil && !has {
		return true, nil
	}
	return false, refusal
}

// isPending reports whether QEMU refuses a request because an earlier one is pending (acpi_pcihp
// and pcie_cap_slot_unplug_request_cb in QEMU's hw).
func isPending(err error) bool {
	var refusal *libvirt.Error
	return errors.As(err, &refusal) && (strings.Contains(refusal.Message, "in the process of unplug") ||
		strings.Contains(refusal.Message, "unplug pending") || strings.Contains(refusal.Message, "power indicator"))
}

// awaitRemoved waits for the answer to a request. done is false if libvirt should be asked again.
func (d *Domain) awaitRemoved(ctx context.Context, events *libvirt.Subscription, nicID string) (done bool, err error) {
	again := time.NewTimer(askAgain)
	defer again.Stop()
	for {
		select {
		case e, open := <-events.C:
			switch {
			case !open:
				return false, explainStopped(d.Err())
			case e.Kind == libvirt.DeviceRemoved && e.Device == nic.LibvirtAlias(nicID):
				return true, nil
			case e.Kind == libvirt.DeviceRemovalFailed && e.Device == nic.LibvirtAlias(nicID):
				return false, fmt.Errorf("%w (libvirt: device %s)", qmp.ErrGuestRefused, e.Device)
			case e.Kind == libvirt.Lifecycle && (e.Change == libvirt.Stopped || e.Change == libvirt.Crashed):
				return false, errEnded
			}
		case <-again.C:
			has, err := d.Has(ctx, nicID) // an event may have been lost
			return !has && err == nil, explainStopped(err)
		case <-ctx.Done():
			return false, fmt.Errorf("%w: %w", qmp.ErrUnplugTimeout, context.Cause(ctx))
		}
	}
}

// errEnded is returned for a guest that has ended. It matches the error of a closed monitor.
var errEnded = fmt.Errorf("%w: the domain has ended", qmp.ErrClosed)

// plugExplanations explain messages of libvirt and QEMU that name no cure, by a part of their
// texts: those of virDomainPCIAddressGetNextAddr in libvirt's src/conf/domain_addr.c,
// virDomainObjBeginJobInternal in src/conf/virdomainjob.c, virNetDevTapCreate in
// src/util/virnetdevtap.c, and QEMU's.
var plugExplanations = []struct{ part, own string }{
	{
		"No more available PCI slots",
		"the guest has no free PCI port: give it some while it is off, <controller type='pci' model='pcie-root-port'/> for each NIC (virsh edit), or detach another device",
	},
	{
		"does not support hotplugging",
		"the guest's machine takes no devices while it runs: give it PCI Express root ports (virsh edit), or <acpi/> among its features",
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
		"libvirt cannot open /dev/net/tun: load the module (modprobe tun), or give libvirt the device (cgroup_device_acl in qemu.conf)",
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

// explainPlug puts the explanation and the cure before libvirt's error.
func explainPlug(err error) error {
	var refusal *libvirt.Error
	if !errors.As(err, &refusal) {
		return err
	}
	for _, x := range plugExplanations {
		if strings.Contains(refusal.Message, x.part) {
			return fmt.Errorf("%s (%w)", x.own, err)
		}
	}
	return err
}

// explainStopped makes an error of libvirt that means that the domain has ended match errEnded.
func explainStopped(err error) error {
	if errors.Is(err, libvirt.ErrOperationInvalid) || errors.Is(err, libvirt.ErrNoDomain) {
		return fmt.Errorf("%w: %w", errEnded, err)
	}
	return err
}

// RequestUnplug asks libvirt to detach the NIC, and does not wait.
func (d *Domain) RequestUnplug(ctx context.Context, nicID string) error {
	return d.DetachDeviceAlias(ctx, d.dom, nic.LibvirtAlias(nicID), libvirt.AffectLive)
}
