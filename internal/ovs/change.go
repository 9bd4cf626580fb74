package ovs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/ovsdb"
)

// Config is what a port should be.
type Config struct {
	Name     string // of the tap, which exists
	Settings brport.Settings
	Owner    Owner
	IfaceID  string // by which OVN knows it; empty if it does not
	MAC      string // of the guest; empty if it is not known
	VMID     string // UUID of the guest; empty if it has none
}

// ids returns the external ids of the interface that are vmnet's to write (IntegrationGuide.rst of
// Open vSwitch).
func (cfg Config) ids() ovsdb.Map {
	m := ovsdb.Map{"iface-id": cfg.IfaceID, "attached-mac": cfg.MAC, "iface-status": "active", "vm-id": cfg.VMID}
	maps.DeleteFunc(m, func(_, value string) bool { return value == "" })
	return m
}

// ErrTaken is returned if the database has a port of that name that is not vmnet's to remove.
var ErrTaken = errors.New("a port of that name exists in Open vSwitch")

// CheckName returns an error that matches ErrTaken if a port has that name which vmnet has not made
// on this machine. One that vmnet has made is of a device that has gone, if none has that name.
func (c *Conn) CheckName(ctx context.Context, name string, here Place) error {
	_, err := c.former(ctx, name, here)
	return err
}

// former returns the ports of that name that vmnet has made on this machine.
func (c *Conn) former(ctx context.Context, name string, here Place) ([]Port, error) {
	all, err := c.Named(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		o := p.Owner
		if o == nil || o.Machine != here.Machine || o.Boot == here.Boot && o.Netns != here.Netns {
			return nil, p.taken(c.Path())
		}
	}
	return all, nil
}

func (p *Port) taken(db string) error {
	whose := "which vmnet did not make"
	if o := p.Owner; o != nil {
		whose = fmt.Sprintf("that of %s of another machine or network namespace", o.Label())
	}
	on := "of no bridge"
	if p.Bridge != "" {
		on = "of " + p.Bridge
	}
	return fmt.Errorf("%w: %s %s, %s (ovs-vsctl --db=unix:%s del-port %[2]s, if nobody needs it)", ErrTaken, p.Name,
		on, whose, db)
}

// Add makes a tap a port of a bridge, and waits until ovs-vswitchd has it. A row of that name that
// vmnet has made on this machine was made for a former tap: it is removed first. In user space
// ovs-vswitchd keeps the former device of a row whose name stays, so the removal has to be carried
// out before the new row is there. An error that matches ErrTaken changes nothing; after any other,
// Withdraw removes what may be there.
func (c *Conn) Add(ctx context.Context, b *Bridge, cfg Config) error {
	former, err := c.former(ctx, cfg.Name, cfg.Owner.Place)
	if err != nil {
		return err
	}
	if err := c.Remove(ctx, former); err != nil {
		return err
	}
	if len(former) > 0 || b.Datapath == Userspace {
		if _, err := c.change(ctx); err != nil {
			return err
		}
	}
	port := ovsdb.Row{
		"name": cfg.Name, "interfaces": ovsdb.Named("i"),
		"external_ids": ovsdb.Map{ownerKey: cfg.Owner.String()},
		"other_config": ovsdb.Map{"transient": "true"}, // ovs-ctl(8): it goes with the host's next boot
	}
	maps.Copy(port, columns(cfg.Settings))
	is := ovsdb.Where("name", "==", cfg.Name)
	rs, err := c.change(ctx,
		ovsdb.AwaitNone(0, "Port", is), ovsdb.AwaitNone(0, "Interface", is),
		ovsdb.Insert("Interface", "i", ovsdb.Row{"name": cfg.Name, "external_ids": cfg.ids()}),
		ovsdb.Insert("Port", "p", port),
		ovsdb.Mutate("Bridge", []ovsdb.Mutation{ovsdb.Change("ports", "insert", ovsdb.Named("p"))}, ovsdb.Is(b.ID)))
	switch {
	case errors.Is(err, ovsdb.ErrTimedOut):
		return fmt.Errorf("%w: %s, which was made meanwhile", ErrTaken, cfg.Name)
	case err != nil:
		return err
	case rs[4].Count != 1: // the rows are not referenced, so they went with the transaction
		return fmt.Errorf("bridge %s of Open vSwitch: %w any more", b.Name, fs.ErrNotExist)
	}
	return c.check(ctx, cfg)
}

// check returns an error if ovs-vswitchd cannot use a port that it has.
func (c *Conn) check(ctx context.Context, cfg Config) error {
	p, err := c.Of(ctx, cfg.Name, cfg.Owner)
	if err != nil {
		return err
	}
	if why := p.Trouble(); why != "" {
		return fmt.Errorf("port %s does not work, in the words of Open vSwitch: %.300q", cfg.Name, why)
	}
	return nil
}

// Of reads the port of that name of that owner. If there is none, the error matches fs.ErrNotExist.
func (c *Conn) Of(ctx context.Context, name string, owner Owner) (*Port, error) {
	all, err := c.Named(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.owner == owner.String() {
			return &p, nil
		}
	}
	return nil, fmt.Errorf("port %s of Open vSwitch: %w", name, fs.ErrNotExist)
}

// Withdraw removes the port of that name of that owner, if it is there.
func (c *Conn) Withdraw(ctx context.Context, name string, owner Owner) error {
	p, err := c.Of(ctx, name, owner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.Remove(ctx, []Port{*p})
}

// Set gives a port its settings and external ids, on the condition that it is still its owner's. It
// does not wait for ovs-vswitchd.
func (c *Conn) Set(ctx context.Context, cfg Config) error {
	p, err := c.Of(ctx, cfg.Name, cfg.Owner)
	if err != nil {
		return err
	}
	keys := ovsdb.Set[string]{}
	for k := range cfg.ids() {
		keys = append(keys, k)
	}
	_, err = c.Transact(ctx, p.guard(),
		ovsdb.Update("Port", columns(cfg.Settings), ovsdb.Is(p.id)),
		ovsdb.Mutate("Interface", []ovsdb.Mutation{
			ovsdb.Change("external_ids", "delete", keys), ovsdb.Change("external_ids", "insert", cfg.ids()),
		}, ovsdb.Is(p.iface)))
	return err
}

// guard fails the transaction unless the port is there and still its owner's.
func (p *Port) guard() ovsdb.Op {
	return ovsdb.Await(0, "Port", ovsdb.Is(p.id),
		ovsdb.Where("external_ids", "includes", ovsdb.Map{ownerKey: p.owner}))
}

// removeAtOnce is how many ports one transaction removes.
const removeAtOnce = 500

// Remove removes ports; those that vmnet has made, on the condition that each is still that
// owner's. It is success if a port has gone meanwhile. It does not wait for ovs-vswitchd.
func (c *Conn) Remove(ctx context.Context, ports []Port) error {
	for len(ports) > 0 {
		some := ports[:min(len(ports), removeAtOnce)]
		ports = ports[len(some):]
		if err := c.removeSome(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

// removeSome removes ports by one transaction. If one has gone, or is another's now, it removes
// each half alone, so that a few of those cost little.
func (c *Conn) removeSome(ctx context.Context, ports []Port) error {
	err := c.remove(ctx, ports)
	if !errors.Is(err, ovsdb.ErrTimedOut) {
		return err
	}
	if len(ports) == 1 {
		return nil
	}
	half := len(ports) / 2
	if err := c.removeSome(ctx, ports[:half]); err != nil {
		return err
	}
	return c.removeSome(ctx, ports[half:])
}

func (c *Conn) remove(ctx context.Context, ports []Port) error {
	var ops []ovsdb.Op
	var ids ovsdb.Set[ovsdb.UUID]
	for _, p := range ports {
		if p.owner != "" { // of a port of others, the UUID alone says all: its name cannot change
			ops = append(ops, p.guard())
		}
		ids = append(ids, p.id)
	}
	_, err := c.Transact(ctx, append(ops,
		ovsdb.Mutate("Bridge", []ovsdb.Mutation{ovsdb.Change("ports", "delete", ids)}), bump)...)
	return err
}

// AwaitInstalled waits until ovn-controller has installed the flows of a port, or ctx ends. It is
// an error if the port goes meanwhile, or does not work. On a bridge that is not OVN's there is
// nothing to wait for.
func (c *Conn) AwaitInstalled(ctx context.Context, name string) error {
	for {
		found, err := c.Named(ctx, name)
		switch {
		case err != nil:
			return err
		case len(found) != 1:
			return fmt.Errorf("port %s of Open vSwitch: %w", name, fs.ErrNotExist)
		case found[0].Trouble() != "":
			return fmt.Errorf("port %s does not work, in the words of Open vSwitch: %.300q", name, found[0].Trouble())
		case !found[0].IsOVNs || found[0].Installed:
			return nil
		}
		_, err = c.Transact(ctx, ovsdb.Await(time.Second, "Interface", ovsdb.Where("name", "==", name),
			ovsdb.Where("external_ids", "includes", ovsdb.Map{"ovn-installed": "true"})))
		if !errors.Is(err, ovsdb.ErrTimedOut) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}
