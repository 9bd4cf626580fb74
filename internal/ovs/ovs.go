// Package ovs makes guests' taps ports of Open vSwitch's bridges, by rows of its database
// (ovs-vswitchd.conf.db(5)). A row is the shadow of a device: it says which one it was made for,
// and is worth nothing once that has gone.
package ovs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/ovsdb"
)

// schema is the name of Open vSwitch's database.
const schema = "Open_vSwitch"

const (
	// ReadWait bounds how long the database may take to say what it has of some NICs.
	ReadWait = 2 * time.Second
	// ReadAllWait bounds how long it may take to say what it has of all.
	ReadAllWait = 5 * time.Second
	// settleWait bounds how long ovs-vswitchd may take to carry out what the database says, which
	// takes milliseconds.
	settleWait = 5 * time.Second
)

// Userspace is the datapath type of a bridge that forwards in user space.
const Userspace = "netdev"

// A Conn is a connection to the database of one Open vSwitch. Close it.
type Conn struct{ *ovsdb.Client }

// Dial connects to the database that listens on the socket path; empty means ovsdb.DefaultPath.
func Dial(ctx context.Context, path string) (*Conn, error) {
	if path == "" {
		path = ovsdb.DefaultPath
	}
	c, err := ovsdb.Dial(ctx, path, schema)
	switch {
	case errors.Is(err, ovsdb.ErrNotRunning):
		err = fmt.Errorf("%w (systemctl start openvswitch-switch; --ovsdb names another database)", err)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w (root may use it, and so may qemu-netup that is installed setuid root)", err)
	}
	if err != nil {
		return nil, err
	}
	return &Conn{c}, nil
}

// With runs f with a connection of its own, so that a request that is cut short affects no other.
func With(ctx context.Context, path string, f func(*Conn) error) error {
	c, err := Dial(ctx, path)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// A Bridge is a bridge of Open vSwitch.
type Bridge struct {
	ID       ovsdb.UUID
	Name     string
	Datapath string // type: "system" for the kernel's, or Userspace
	IsOVNs   bool   // it is the integration bridge of a chassis of OVN
}

type bridgeRow struct {
	ID       ovsdb.UUID            `json:"_uuid"`
	Name     string                `json:"name"`
	Datapath string                `json:"datapath_type"`
	Ports    ovsdb.Set[ovsdb.UUID] `json:"ports"`
}

type rootRow struct {
	Next        int       `json:"next_cfg"`
	Current     int       `json:"cur_cfg"`
	ExternalIDs ovsdb.Map `json:"external_ids"`
}

var (
	bridgeColumns = []string{"_uuid", "name", "datapath_type", "ports"}
	selectRoot    = ovsdb.Select(schema, []string{"next_cfg", "cur_cfg", "external_ids"})
)

// Bridge reads the bridge of that name. If there is none, the error matches fs.ErrNotExist.
func (c *Conn) Bridge(ctx context.Context, name string) (*Bridge, error) {
	rs, err := c.Transact(ctx, selectRoot,
		ovsdb.Select("Bridge", bridgeColumns[:3], ovsdb.Where("name", "==", name)))
	if err != nil {
		return nil, err
	}
	root, err := rootOf(rs[0])
	if err != nil {
		return nil, err
	}
	rows, err := ovsdb.Into[bridgeRow](rs[1])
	if err == nil && len(rows) == 0 {
		err = fmt.Errorf("bridge %s of Open vSwitch (%s): %w", name, c.Path(), fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	b := rows[0].bridge(root)
	return &b, nil
}

func (r bridgeRow) bridge(root rootRow) Bridge {
	b := Bridge{ID: r.ID, Name: r.Name, Datapath: r.Datapath, IsOVNs: isOVNs(root, r.Name)}
	b.Datapath = cmp.Or(b.Datapath, "system")
	return b
}

// A Chassis is what the database says of this host's part in OVN (ovn-controller(8)).
type Chassis struct {
	Remote             string // where OVN's southbound database is; empty if the host is no chassis
	ID                 string // system-id
	EncapType, EncapIP string
	Bridge             string // name of the integration bridge
	HasBridge          bool   // which is there
}

// Chassis reads it.
func (c *Conn) Chassis(ctx context.Context) (*Chassis, error) {
	rs, err := c.Transact(ctx, selectRoot, ovsdb.Select("Bridge", bridgeColumns))
	if err != nil {
		return nil, err
	}
	root, err := rootOf(rs[0])
	if err != nil {
		return nil, err
	}
	bridges, err := ovsdb.Into[bridgeRow](rs[1])
	if err != nil {
		return nil, err
	}
	ids := root.ExternalIDs
	found := &Chassis{
		Remote: ids["ovn-remote"], ID: ids["system-id"], EncapType: ids["ovn-encap-type"], EncapIP: ids["ovn-encap-ip"],
		Bridge: integrationBridge(root),
	}
	for _, b := range bridges {
		found.HasBridge = found.HasBridge || b.Name == found.Bridge
	}
	return found, nil
}

// integrationBridge returns the name of the bridge that ovn-controller(8) takes as its own.
func integrationBridge(root rootRow) string { return cmp.Or(root.ExternalIDs["ovn-bridge"], "br-int") }

// isOVNs reports whether ovn-controller(8) of this database takes the bridge as its own.
func isOVNs(root rootRow, bridge string) bool {
	return root.ExternalIDs["ovn-remote"] != "" && bridge == integrationBridge(root)
}

func rootOf(r ovsdb.Result) (rootRow, error) {
	rows, err := ovsdb.Into[rootRow](r)
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("%w: %d rows in table %s", ovsdb.ErrProtocol, len(rows), schema)
	}
	if err != nil {
		return rootRow{}, err
	}
	return rows[0], nil
}

// bump asks ovs-vswitchd to say, by cur_cfg, when it has carried out the transaction.
var bump = ovsdb.Mutate(schema, []ovsdb.Mutation{ovsdb.Change("next_cfg", "+=", 1)})

// change carries out operations, and waits until ovs-vswitchd has done what they say. It returns
// the operations' results.
func (c *Conn) change(ctx context.Context, ops ...ovsdb.Op) ([]ovsdb.Result, error) {
	rs, err := c.Transact(ctx, append(ops, bump, selectRoot)...)
	if err != nil {
		return nil, err
	}
	root, err := rootOf(rs[len(rs)-1])
	if err != nil {
		return nil, err
	}
	return rs[:len(ops)], c.settle(ctx, root.Next)
}

// settle waits until ovs-vswitchd has carried out configuration next.
func (c *Conn) settle(ctx context.Context, next int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleWait, fmt.Errorf(
		"ovs-vswitchd has not carried it out within %v (check that it runs: systemctl status openvswitch-switch)",
		settleWait))
	defer cancel()
	for {
		_, err := c.Transact(ctx, ovsdb.Await(time.Second, schema, ovsdb.Where("cur_cfg", ">=", next)))
		if !errors.Is(err, ovsdb.ErrTimedOut) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}
