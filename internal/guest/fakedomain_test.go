package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/backend"
	"vmnet/internal/nstest"
	"vmnet/libvirt/libvirttest/fakelibvirt"
	"vmnet/macvtap/vtap"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// within bounds a call of a test.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), nstest.Patience(20*time.Second))
	t.Cleanup(cancel)
	return ctx
}

// guests numbers the guests of this process, each of which is found by its name.
var guests atomic.Int32

func guestName() string { return fmt.Sprintf("v%d", guests.Add(1)) }

// domainOfFake is a domain of a fake libvirtd, and how to open it.
type domainOfFake struct {
	*fakelibvirt.Daemon
	*Finder
	t      *testing.T
	waited atomic.Int32 // how often the wait for a lock was reported
}

func newDomain(t *testing.T) *domainOfFake {
	t.Helper()
	f := &domainOfFake{Daemon: fakelibvirt.Start(t, guestName(), nil), t: t}
	f.Finder = &Finder{Libvirt: f.Socket, Progress: func(string, ...any) { f.waited.Add(1) }}
	return f
}

func (f *domainOfFake) found() *Found {
	f.t.Helper()
	g, err := f.Find(nic.Target{VM: f.Name})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = g.Close() })
	return g
}

// open opens the domain, and returns what plugs its NICs by libvirt.
func (f *domainOfFake) open() (*Guest, *Domain) {
	f.t.Helper()
	g, err := f.Open(within(f.t), f.found(), nic.ViaLibvirt)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = g.Close() })
	return g, g.Domain
}

// spec asks for a NIC on a bridge.
func (f *domainOfFake) spec(edit func(*nic.Spec)) nic.Spec {
	s := nic.Spec{
		Target: nic.Target{VM: f.Name}, NIC: "net0", Bridge: "br0", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1},
		Vhost: nic.VhostOff, Queues: 1, Via: nic.ViaLibvirt,
	}
	edit(&s)
	return s.WithDefaults()
}

func onMacvtap(s *nic.Spec) {
	s.Bridge, s.Lower = "", &nic.Lower{Kind: vtap.Macvtap, Device: "eth0", Mode: "source", NoPromisc: true}
}

func persistent(s *nic.Spec) { s.Persistent = true }

func usual(*nic.Spec) {}

// recordFor is the record of a NIC that is plugged as spec says.
func recordFor(spec nic.Spec) nic.Record {
	r := nic.Record{
		VM: spec.VM, NIC: spec.NIC, Type: nic.TypeTap, Source: spec.Bridge, Port: spec.Port.String(), MAC: spec.MAC,
		Model: spec.Model, Queues: spec.Queues, Via: spec.Via,
	}
	if l := spec.Lower; l != nil {
		r.Type, r.Source, r.Mode, r.RxFilter = string(l.Kind), l.Device, l.Mode, l.RxFilter
	}
	return r
}

// device is the name of the NIC's interface.
const device = "tap-net0"

// planned is the host's half of a NIC, which is not there: the fake takes another file.
func planned(spec nic.Spec) *backend.NIC {
	return &backend.NIC{Spec: spec, Record: recordFor(spec), Interface: backend.Interface{Name: device}}
}

// plug plugs a NIC.
func (f *domainOfFake) plug(d *Domain, spec nic.Spec) nic.Record {
	f.t.Helper()
	n := planned(spec)
	h, err := d.Plan(within(f.t), n)
	if err == nil {
		err = step.Run(within(f.t), withoutDevice(h.Steps), nil)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return n.Record
}

// withoutDevice leaves out the step that needs a tap.
func withoutDevice(steps []step.Step) (left []step.Step) {
	for _, s := range steps {
		if s.Name != "lifetime" {
			left = append(left, s)
		}
	}
	return left
}

// breaking breaks the step of that name after it was done.
func breaking(name string) step.Around {
	return func(ctx context.Context, s step.Step, do func(context.Context) error) error {
		if err := do(ctx); err != nil || s.Name != name {
			return err
		}
		return errBroken
	}
}

var errBroken = errors.New("broken")

func namesOf(steps []step.Step) string {
	var all []string
	for _, s := range steps {
		all = append(all, s.Name)
	}
	return strings.Join(all, ", ")
}

// isolated is a setting of a port, as a record and a declaration have it.
var isolated = brport.Settings{Isolated: true}

// state is what libvirt says of the NIC in both definitions: "interface down" or "-" for the
// interface, and "isolated", "declared" or "-" for the declaration.
func (f *domainOfFake) state() string {
	f.t.Helper()
	running, stored := f.Definitions()
	return described(running) + "; " + described(stored)
}

func described(def fakelibvirt.Definition) string {
	has, declared := "-", "-"
	for _, text := range def.Interfaces {
		has = "interface"
		if strings.Contains(text, `state="down"`) {
			has = "interface down"
		}
	}
	switch {
	case strings.Contains(def.Metadata, "isolated"):
		declared = "isolated"
	case strings.Contains(def.Metadata, "net0"):
		declared = "declared"
	}
	return has + ", " + declared
}
