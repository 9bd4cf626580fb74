package backend

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovs"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// ForwardWait bounds how long a port may take to forward: half a minute on a bridge that runs STP.
// The central databases of OVN may be far away.
const ForwardWait = time.Minute

// AwaitForwarding waits until a NIC's bridge port forwards, on a chassis of OVN until its flows are
// installed. A NIC that is on neither forwards at once. The port of a prepared NIC forwards only
// after the commit; OVN installs its flows before.
func (m *Maker) AwaitForwarding(ctx context.Context, n nic.NIC) error {
	switch {
	case n.Type == nic.TypeOVS && m.HelperPath != "":
		return m.askToAwait(ctx, n.Interface)
	case n.Type == nic.TypeOVS:
		return m.awaitFlows(ctx, n)
	case n.Type != nic.TypeTap, n.Switch, n.State == nic.Prepared:
		return nil
	}
	for {
		l, err := m.NL.Link(n.Interface)
		if err != nil {
			return fmt.Errorf("wait for %s: %w", n.Interface, err)
		}
		if l.Port != nil && l.Port.State == rtnl.Forwarding {
			return nil
		}
		if l.Port == nil {
			return fmt.Errorf("wait for %s: it is on no bridge any more", n.Interface)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s, which is %s: %w", n.Interface, l.Port.State, context.Cause(ctx))
		case <-time.After(20 * inventory.PollEvery):
		}
	}
}

// awaitInTime is AwaitForwarding for at most ForwardWait.
func (m *Maker) awaitInTime(ctx context.Context, n nic.NIC) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ForwardWait, fmt.Errorf("it does not forward after %v", ForwardWait))
	defer cancel()
	return m.AwaitForwarding(ctx, n)
}

// awaitFlows waits until OVN has installed the flows of a port of Open vSwitch.
func (m *Maker) awaitFlows(ctx context.Context, n nic.NIC) error {
	err := m.UseOVS(ctx, n.OVSDB, func(c *ovs.Conn) error { return c.AwaitInstalled(ctx, n.Interface) })
	if err != nil {
		return fmt.Errorf("wait for OVN to install the flows of %s, iface-id %s: %w (ovn-nbctl show; ovn-sbctl show)",
			n.Interface, n.IfaceID, err)
	}
	return nil
}

// askToAwait has the privileged helper wait: only root may ask the database of Open vSwitch.
func (m *Maker) askToAwait(ctx context.Context, tap string) error {
	var said head
	cmd := exec.CommandContext(ctx, m.HelperPath, "--await="+tap)
	cmd.Stderr = &said
	err := cmd.Run()
	text := strings.TrimSpace(string(said))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("wait for %s: %w (ovn-nbctl show; ovn-sbctl show)", tap, context.Cause(ctx))
	case text != "":
		return errors.New(text)
	}
	return fmt.Errorf("%s: %w", m.HelperPath, err)
}

// AwaitOwn is AwaitForwarding, for at most ForwardWait, for the tap of that name on Open vSwitch,
// if it was made for the user for whom this process works.
func (m *Maker) AwaitOwn(ctx context.Context, tap string) error {
	l, err := m.NL.Link(tap)
	var r nic.Record
	if err == nil {
		r, _ = nic.ParseRecord(l.Alias)
	}
	if r.Type != nic.TypeOVS || m.Owner != 0 && r.Owner != m.Owner {
		return fmt.Errorf("%.20q is no NIC of user %d on Open vSwitch (vmnet list)", tap, m.Owner)
	}
	return m.awaitInTime(ctx, nic.NIC{Interface: l.Name, Type: r.Type, OVSDB: r.OVSDB, IfaceID: r.OVSIfaceID()})
}

// AwaitForwarding has Make wait until the NICs forward, one after the other, or leave nothing
// behind.
func (l *Launch) AwaitForwarding() {
	for _, h := range l.nics {
		n := h.planned()
		if h.Spec.Prepared {
			n.State = nic.Prepared
		}
		l.steps = append(l.steps, step.Step{
			Name:  "await " + h.Spec.NIC,
			Text:  fmt.Sprintf("wait until %s forwards, at most %v", n.Interface, ForwardWait),
			Stage: nic.ErrLink,
			Do:    func(ctx context.Context) error { return l.m.awaitInTime(ctx, n) },
		})
	}
}
