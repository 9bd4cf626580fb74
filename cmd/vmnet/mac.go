package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/spf13/cobra"

	"vmnet/internal/guestfile"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

func (a *app) macCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "mac NAME [NIC]",
		Short: "Print the MAC that a NIC of a guest will have",
		Long: `Print the MAC addresses that the NICs of a guest will have, before it runs: for a DHCP
server, or for cloud-init. It is the one that the guest's file declares (vmnet-guests(5)), and
otherwise one derived from the machine and from the names of guest and NIC, which is always the
same. Without the id of a NIC, print those of all declared NICs, or that of net0 if the guest has no
file. A NIC that is there can have been attached with another MAC: vmnet list shows that.`,
		Example: `  vmnet mac P2 net0
  vmnet network create lab --nat --dhcp --host web=$(vmnet mac web net0)`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return fmt.Errorf("%s takes the name of a guest, and the id of a NIC, got %s", cmd.CommandPath(),
					count(len(args), "argument"))
			}
			return nil
		},
		ValidArgsFunction: a.declaredGuests(&dir),
	}
	guestsDirFlag(cmd, &dir)
	outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		if err := nic.ValidVM(args[0]); err != nil {
			return usagef("%w", err)
		}
		if len(args) == 2 {
			if err := nic.ValidNIC(args[1]); err != nil {
				return usagef("%w", err)
			}
		}
		g, err := declaredGuest(dir, args[0])
		if err != nil {
			return err
		}
		return a.macs(g, args[1:])
	})
	return cmd
}

// declaredGuest returns what the file of a guest says; without a file, a guest without NICs.
func declaredGuest(chosen, vm string) (*guestfile.Guest, error) {
	dir, err := guestsDir(chosen)
	if err != nil {
		return nil, err
	}
	guests, broken, err := dir.All()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(guests, func(g *guestfile.Guest) bool { return g.VM == vm }); i >= 0 {
		return guests[i], nil
	}
	return &guestfile.Guest{VM: vm}, broken[vm]
}

// macOf is a NIC and its address.
type macOf struct {
	VM  string `json:"vm"`
	NIC string `json:"nic"`
	MAC string `json:"mac"`
}

// macs prints the addresses of the NICs of these ids, or else of all.
func (a *app) macs(g *guestfile.Guest, ids []string) error {
	one := len(ids) == 1
	if !one {
		for _, n := range g.NICs {
			if n.State != guestfile.Absent {
				ids = append(ids, n.Spec.NIC)
			}
		}
		if len(g.NICs) == 0 {
			ids = []string{"net0"}
		}
	}
	all := []macOf{}
	derived := false
	for _, id := range ids {
		mac, own, err := a.macOf(g, id)
		if err != nil {
			return err
		}
		derived = derived || own
		all = append(all, macOf{g.VM, id, mac})
	}
	if err := stablemac.Check("/"); err != nil && derived {
		a.note(err.Error())
	}
	switch {
	case a.json:
		return a.printJSON(all)
	case one:
		return a.line("%s", all[0].MAC)
	}
	for _, m := range all {
		if err := a.line("%s %s", m.NIC, m.MAC); err != nil {
			return err
		}
	}
	return nil
}

// macOf returns the address of one NIC; derived says that it is made from the names.
func (a *app) macOf(g *guestfile.Guest, id string) (mac string, derived bool, err error) {
	if addr := g.MAC(id); addr != nil {
		return addr.String(), addr.String() == nic.DefaultMAC(g.VM, id).String(), nil
	}
	i := slices.IndexFunc(g.NICs, func(n guestfile.NIC) bool { return n.Spec.NIC == id })
	parent := g.NICs[i].Spec.Source()
	err = a.withNetlink(func(c *rtnl.Conn) error {
		l, err := c.Link(parent)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s/%s has the MAC of its parent device %s: %w", g.VM, id, parent, err)
		}
		if err == nil {
			mac = l.MAC.String()
		}
		return err
	})
	return mac, false, err
}
