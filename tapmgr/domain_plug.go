package tapmgr

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

// prepare writes the XML that libvirt is asked with.
func (d *domain) prepare(ctx context.Context, h *backend.NIC) (err error) {
	if d.declare, d.store, err = d.keep(ctx, h.Spec, h.Record, h.Interface.Name, false); err != nil {
		return err
	}
	h.Opener = d.user // who may not open root's
	d.xml, err = ethernet(h.Record, h.Interface.Name).XML()
	h.Notices = append(h.Notices, d.costOfNoHook(h.Record)...)
	return err
}

// storedXML is a NIC in libvirt's words, as it is stored: libvirt makes the device itself then, and
// the hook adopts it. So a clone of the guest gets one of its own: virt-clone takes the device's
// name out, without which libvirt opens none that is there already (managed='no').
func storedXML(spec nic.Spec, r nic.Record, device string) (string, error) {
	x := ethernet(r, device)
	x.Managed = r.Type == nic.TypeTap
	if mode, ok := directMode(spec.Lower, r.MTU); ok {
		x.Managed, x.Parent, x.Mode = true, r.Source, mode
	}
	return x.XML()
}

// directMode is libvirt's name for the mode of a macvtap that libvirt makes, and the hook then
// adopts. Mode source, which libvirt does not have, begins as one that hears as little. ok is false
// without a macvtap; for one whose guest is told an MTU, which libvirt refuses
// (qemuDomainNetSupportsMTU in src/qemu/qemu_domain.c); and for one whose parent device is not to
// become promiscuous: the kernel loses count of that where it is changed while the device is down
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

// ethernet is a NIC in libvirt's words.
func ethernet(r nic.Record, device string) domainxml.Ethernet {
	driver := ""
	if nic.IsVirtio(r.Model) {
		driver = "qemu"
		if r.Vhost {
			driver = "vhost"
		}
	}
	return domainxml.Ethernet{
		Tap: device, MAC: r.MAC, Model: nic.LibvirtModel(r.Model), Queues: r.Queues, MTU: r.MTU, Driver: driver, Alias: nic.LibvirtAlias(r.NIC),
	}
}

func (d *domain) plugSteps(h *backend.NIC) []step.Step {
	nicID := h.Record.NIC
	list := []step.Step{{
		Name: "attach-device",
		Text: fmt.Sprintf("libvirt: attach %s to %s: %s", nic.LibvirtAlias(nicID), d.dom.Name, d.xml),
		Do: func(ctx context.Context) error {
			return explainPlug(d.AttachDevice(ctx, d.dom, d.xml, libvirt.AffectLive))
		},
		Undo: func(ctx context.Context) error { return d.undoAttach(ctx, nicID) },
	}, {
		Name: "lifetime",
		Text: fmt.Sprintf("TUNSETPERSIST 0 on a copy of QEMU's own fd of %s", h.Interface.Name),
		Do: func(context.Context) error {
			link, err := d.m.host.NL.Link(h.Interface.Name)
			if err != nil {
				return err
			}
			return d.m.host.ClearPersist(&inventory.Device{Link: link, Want: h.Record}, d.guest.PID)
		},
	}}
	if h.Spec.Lower != nil { // it stays until it is detached, or reconciled
		list = list[:1]
	}
	return slices.Concat(d.declare, list, d.store)
}

// undoAttach takes back an attach of which we may not know how it ended.
func (d *domain) undoAttach(ctx context.Context, nic string) error {
	ctx, cancel := context.WithTimeout(ctx, backend.ReleaseWait)
	defer cancel()
	return d.unplug(ctx, nic, func(time.Duration) {})
}

// askAgain is how often a guest is asked that does not answer: one that boots drops a request.
const askAgain = time.Second

func (d *domain) unplugText(nicID string) string {
	return fmt.Sprintf("libvirt: detach %s from %s, again each second until the guest lets go of it", nic.LibvirtAlias(nicID), d.dom.Name)
}

func (d *domain) unplug(ctx context.Context, nic string, waiting func(time.Duration)) error {
	events, err := d.Subscribe(ctx, &d.dom, 64, libvirt.DeviceRemoved, libvirt.DeviceRemovalFailed, libvirt.Lifecycle)
	if err != nil {
		return err
	}
	defer events.Close()
	start := time.Now()
	for {
		err := d.request(ctx, nic)
		if absent, err := d.refused(ctx, nic, err); absent || err != nil {
			return err
		}
		done, err := d.awaitRemoved(ctx, events, nic)
		if done || err != nil {
			return err
		}
		waiting(time.Since(start))
	}
}

// refused is about a request that libvirt, in whatever language it speaks, or QEMU has refused:
// absent where there is no such device (any more), no error where it is under way already.
func (d *domain) refused(ctx context.Context, nic string, refusal error) (absent bool, err error) {
	if refusal == nil || underWay(refusal) {
		return false, nil
	}
	if ended := explainStopped(refusal); ended != refusal {
		return false, ended
	}
	has, err := d.has(ctx, nic)
	if err == nil && !has {
		return true, nil
	}
	return false, refusal
}

// underWay tells whether QEMU refuses a request because it has one already (acpi_pcihp and
// pcie_cap_slot_unplug_request_cb in QEMU's hw).
func underWay(err error) bool {
	var refusal *libvirt.Error
	return errors.As(err, &refusal) && (strings.Contains(refusal.Message, "in the process of unplug") || strings.Contains(refusal.Message, "unplug pending") || strings.Contains(refusal.Message, "power indicator"))
}

// awaitRemoved waits for the answer to a request for as long as it makes sense; done is false where
// it should be asked again.
func (d *domain) awaitRemoved(ctx context.Context, events *libvirt.Subscription, nicID string) (done bool, err error) {
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
			has, err := d.has(ctx, nicID) // an event may have been lost
			return !has && err == nil, explainStopped(err)
		case <-ctx.Done():
			return false, fmt.Errorf("%w: %w", qmp.ErrUnplugTimeout, context.Cause(ctx))
		}
	}
}

// errEnded is a guest that has ended, in the same terms as a monitor that is gone.
var errEnded = fmt.Errorf("%w: the domain has ended", qmp.ErrClosed)

// plugExplanations are what refusals of libvirt's mean whose words tell only what is the matter, by
// a part of the text: virDomainPCIAddressGetNextAddr in src/conf/domain_addr.c,
// virDomainObjBeginJobInternal in src/conf/virdomainjob.c, virNetDevTapCreate in
// src/util/virnetdevtap.c, and QEMU's own.
var plugExplanations = []struct{ part, own string }{
	{"No more available PCI slots", "the guest has no free PCI port: give it some while it is off, <controller type='pci' model='pcie-root-port'/> for each NIC (virsh edit), or detach another device"},
	{"does not support hotplugging", "the guest's machine takes no devices while it runs: give it PCI Express root ports (virsh edit), or <acpi/> among its features"},
	{"vhost-net was requested", "libvirt cannot have vhost-net: --vhost off does without"},
	{"cannot acquire state change lock", "libvirt is busy with another job for this domain: try again when that has ended (virsh domjobinfo)"},
	{"not allowed while migrating", "the guest is being migrated or saved: try again when that has ended (virsh domjobinfo)"},
	{"is tun module loaded?", "libvirt cannot open /dev/net/tun: load the module (modprobe tun), or give libvirt the device (cgroup_device_acl in qemu.conf)"},
	{"Too many open files", "libvirt may open no more files: raise LimitNOFILE= of its service"},
	{"operation forbidden for read only access", "this user may only look at libvirt's domains: run vmnet as root, or join the group libvirt"},
	{"authentication unavailable", "this user may not use libvirt: run vmnet as root, or join the group libvirt"},
	{"access denied", "this user may not change the domain: run vmnet as root, or have libvirt's policy allow it (polkit)"},
}

// explainPlug puts our own words before a refusal of libvirt's.
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

// explainStopped makes libvirt's words for a domain that has ended ours.
func explainStopped(err error) error {
	if errors.Is(err, libvirt.ErrOperationInvalid) || errors.Is(err, libvirt.ErrNoDomain) {
		return fmt.Errorf("%w: %w", errEnded, err)
	}
	return err
}

func (d *domain) request(ctx context.Context, nicID string) error {
	return d.DetachDeviceAlias(ctx, d.dom, nic.LibvirtAlias(nicID), libvirt.AffectLive)
}

// cutOff is more than libvirt can: the backend goes with the device.
func (d *domain) cutOff(context.Context, string) error { return nil }

// giveBack has nothing to do: what libvirt could not plug, it has closed.
func (d *domain) giveBack(context.Context, *inventory.Device) error { return nil }

func (d *domain) elsewhere(context.Context, *inventory.Device) error { return nil }

// RxFilter is known to QEMU alone, and to ask it would taint the domain.
func (d *domain) rxFilter(context.Context, string) (*qmp.RxFilter, error) { return nil, nil }
