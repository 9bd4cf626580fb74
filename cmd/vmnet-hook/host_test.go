package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/libvirthook/hookfile"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
	"vmnet/libvirt/libvirttest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// patience is how long things may take that need no time on an idle machine.
const patience = 30 * time.Second

// build installs the hook, and returns its path.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmnet-hook")
	testprogram.Install(t, path, testprogram.Build(t, "."))
	return path
}

// host is a machine with a libvirtd that calls our hook, and a bridge br0.
type host struct {
	*testing.T
	*tapmgr.Manager
	ns   *netns.NS
	nl   *netlink.Handle
	virt *libvirttest.Daemon
	hook string // the program
}

func newHost(t *testing.T, conf ...string) *host {
	t.Helper()
	libvirttest.Require(t)
	ns := nstest.New(t)
	m, err := tapmgr.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	h := &host{T: t, Manager: m, ns: ns, nl: nstest.Handle(t, ns), hook: build(t)}
	h.add(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
	h.virt = libvirttest.Start(t, ns, conf...)
	if err := os.MkdirAll(h.etc("qemu.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

// installed is a host whose libvirtd calls the hook.
func installed(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.link()
	h.reload()
	return h
}

// etc is a path below libvirtd's own /etc/libvirt/hooks, seen from here.
func (h *host) etc(path ...string) string {
	return filepath.Join(append([]string{fmt.Sprintf("/proc/%d/root/etc/libvirt/hooks", h.virt.PID())}, path...)...)
}

// link is what vmnet hook install does.
func (h *host) link() hookfile.Change {
	h.Helper()
	change, err := hookfile.Install(fmt.Sprintf("/proc/%d/root", h.virt.PID()), hookfile.Dir, h.hook)
	if err != nil {
		h.Fatal(err)
	}
	return change
}

// script is another hook, before ours or after it by its name. In it $HOOK is ours.
func (h *host) script(name, text string) {
	h.Helper()
	path := h.etc("qemu.d", name)
	_ = os.Remove(path)
	if err := os.WriteFile(path, []byte("#!/bin/sh\nHOOK="+h.hook+"\nDIR="+h.dir()+"\n"+text+"\n"), 0o755); err != nil {
		h.Fatal(err)
	}
}

// dir is where scripts leave what they have seen.
func (h *host) dir() string { return filepath.Dir(h.virt.Socket()) }

// reload makes libvirtd look for hooks again, and waits until it has.
func (h *host) reload() {
	h.Helper()
	done := filepath.Join(h.dir(), "reloaded")
	_ = os.Remove(done)
	if err := os.WriteFile(h.etc("daemon"), []byte("#!/bin/sh\n[ $2 != reload ] || : >"+done+"\n"), 0o755); err != nil {
		h.Fatal(err)
	}
	if err := syscall.Kill(h.virt.PID(), syscall.SIGHUP); err != nil {
		h.Fatal(err)
	}
	h.eventually("libvirtd reloads", func() bool { _, err := os.Stat(done); return err == nil })
}

func (h *host) eventually(what string, ok func() bool) {
	h.Helper()
	held := false
	defer func() {
		if !held {
			h.Logf("libvirtd said:\n%s", h.virt.Log())
		}
	}()
	nstest.Eventually(h, patience, what, ok)
	held = true
}

func (h *host) add(l netlink.Link) {
	h.Helper()
	if err := h.nl.LinkAdd(l); err != nil {
		h.Fatalf("add %s: %v", l.Attrs().Name, err)
	}
	if err := h.nl.LinkSetUp(l); err != nil {
		h.Fatal(err)
	}
}

// lower is a parent device for macvtaps.
func (h *host) lower(name string) {
	h.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	h.add(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "-far"})
	far, err := h.nl.LinkByName(name + "-far")
	if err != nil {
		h.Fatal(err)
	}
	if err := h.nl.LinkSetUp(far); err != nil {
		h.Fatal(err)
	}
}

// links are the names of all interfaces but those of the host itself.
func (h *host) links() []string {
	h.Helper()
	all, err := h.nl.LinkList()
	if err != nil {
		h.Fatal(err)
	}
	var names []string
	for _, l := range all {
		n := l.Attrs().Name
		own := []string{"lo", "br0", "br-int", "ovs-netdev", "c0", "c1"}
		if !slices.Contains(own, n) && !strings.HasPrefix(n, "eth") {
			names = append(names, n)
		}
	}
	return names
}

// nothingLeft wants all devices of guests to be gone.
func (h *host) nothingLeft() {
	h.Helper()
	h.eventually("all devices go", func() bool { return len(h.links()) == 0 })
}

// nics are the guest's, by their ids.
func (h *host) nics(guest string) map[string]nic.NIC {
	h.Helper()
	all, err := h.List(h.Context(), guest)
	if err != nil {
		h.Fatal(err)
	}
	nics := map[string]nic.NIC{}
	for _, n := range all {
		nics[n.ID] = n
	}
	return nics
}

// hasNIC wants the guest to have exactly that NIC; the kernel takes a while for states.
func (h *host) hasNIC(want nic.NIC) {
	h.Helper()
	var got nic.NIC
	defer func() {
		if !reflect.DeepEqual(got, want) {
			h.Logf("%+v, want\n%+v", got, want)
		}
	}()
	h.eventually("NIC "+want.ID+" is as wanted", func() bool {
		got = h.nics(want.VM)[want.ID]
		return reflect.DeepEqual(got, want)
	})
}

// isolated reads a port from the kernel.
func (h *host) isolated(name string) bool {
	h.Helper()
	l, err := h.nl.LinkByName(name)
	if err != nil {
		h.Fatal(err)
	}
	info, err := h.nl.LinkGetProtinfo(l)
	if err != nil {
		h.Fatal(err)
	}
	return info.Isolated
}

// define makes a domain whose processors never run anything of use.
func (h *host) define(name, metadata, interfaces string) {
	h.Helper()
	h.defineWith(name, metadata, interfaces, "")
}

// defineWith adds elements to <os>.
func (h *host) defineWith(name, metadata, interfaces, os string) {
	h.Helper()
	h.virt.Define(fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<metadata>%s</metadata><os><type arch='x86_64' machine='pc'>hvm</type>%s</os><features><acpi/></features>
<devices><controller type='usb' model='none'/><memballoon model='none'/>%s</devices></domain>`,
		name, metadata, os, interfaces))
}

// metadata is the element of our namespace.
func metadata(nics ...string) string {
	return `<vmnet:nics xmlns:vmnet="urn:vmnet:nics:1">` + strings.Join(nics, "") + `</vmnet:nics>`
}

// handed is an interface whose device is made by the hook.
func handed(device, id string, n int, more string) string {
	return fmt.Sprintf(
		`<interface type='ethernet'><mac address='%s'/><target dev='%s' managed='no'/><model type='virtio'/>%s`+
			`<alias name='ua-vmnet-%s'/></interface>`,
		guestMAC(n), device, more, id)
}

// onBridge is an interface whose tap libvirt makes.
func onBridge(n int) string {
	return fmt.Sprintf(
		`<interface type='bridge'><mac address='%s'/><source bridge='br0'/><model type='virtio'/></interface>`,
		guestMAC(n))
}

func guestMAC(n int) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 1, byte(n)} }

// refused wants a domain not to start, and virsh to show that text.
func (h *host) refused(domain, want string) {
	h.Helper()
	out, err := h.virt.Try("start", domain)
	if err == nil || !strings.Contains(out, want) {
		h.Errorf("start %s: %v: %s\nwant %s", domain, err, out, want)
	}
	h.nothingLeft()
}
