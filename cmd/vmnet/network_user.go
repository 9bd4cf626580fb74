package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/server"
	"vmnet/internal/network/userdirs"
	"vmnet/internal/network/usernet"
	"vmnet/internal/sdnotify"
	"vmnet/tapmgr/nic"
)

// userChoice is the flag --user: whether networks are those of this user. If it is not given, they
// are unless the user is root.
type userChoice struct{ given, user bool }

// Set implements pflag.Value.
func (u *userChoice) Set(s string) (err error) {
	u.given = true
	u.user, err = strconv.ParseBool(s)
	return err
}

// String implements pflag.Value.
func (u *userChoice) String() string {
	if !u.given {
		return ""
	}
	return strconv.FormatBool(u.user)
}

// Type implements pflag.Value.
func (*userChoice) Type() string { return "bool" }

func (u *userChoice) yes() bool {
	if u.given {
		return u.user
	}
	return os.Geteuid() != 0
}

// networkPlaces fills in the directories that were not given.
func (a *app) networkPlaces(o *networkFlags) error {
	configs, state := config.Dir(config.DefaultDir), dhcp.DefaultState
	if o.user.yes() {
		if a.netns != "" {
			return usagef("--netns %s: a user's networks are in namespaces of their own (root's: --user=false)",
				a.netns)
		}
		var err error
		if configs, state, err = userdirs.Of(os.Getenv); err != nil {
			return err
		}
	}
	if o.config == "" {
		o.config = string(configs)
	}
	if o.state == "" {
		o.state = state
	}
	return nil
}

// userNetworks returns what makes the networks of this user.
func userNetworks(o *networkFlags) (network.Elsewhere, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return usernet.Place{
		State: o.state, Resolv: server.ResolvConf(),
		Command: []string{
			self, "network", "serve", "--user", "--config-dir", o.config, "--state-dir", o.state, "--",
		},
	}, nil
}

// networkServeUser runs a network of this user until it is stopped. It takes no lock, since the
// process that has it may wait for this one.
func (a *app) networkServeUser(ctx context.Context, m *network.Manager, name string) error {
	n, err := m.Dir.Read(name)
	if err != nil {
		return err
	}
	roomForOthers()
	log := usernet.OpenLog(m.State, name)
	var printed error
	err = usernet.Serve(ctx, usernet.Config{
		Network: n, State: m.State, Resolv: server.ResolvConf(), Version: versionText(), Notice: log.Add,
	}, func(socket string) {
		status := fmt.Sprintf("network %s: guests are answered, socket %s", name, socket)
		printed = a.result(networkServed{name, "running", socket}, "%s", status)
		if err := sdnotify.Notify("READY=1\nSTATUS=" + status); err != nil {
			a.note(err.Error())
		}
	})
	if err != nil {
		log.Add(err.Error())
	}
	if err := sdnotify.Notify("STOPPING=1"); err != nil {
		a.note(err.Error())
	}
	return errors.Join(err, printed, a.result(networkServed{Network: name, State: "ended"}, "network %s: ended", name))
}

// joinNetwork puts a NIC that is to be on a network of this user on its switch, and starts the
// network if it does not run. own is false for a network of root.
func (a *app) joinNetwork(ctx context.Context, s *nic.Spec) (own bool, err error) {
	if a.netns != "" || os.Geteuid() == 0 {
		return false, nil
	}
	name := s.Network
	if err := joinOwn(ctx, s); err != nil || s.Network != "" {
		return false, err
	}
	return true, a.startOwn(ctx, name)
}

// awaitAddress waits until the server of a network of this user gives a guest the address that it
// was attached with.
func awaitAddress(ctx context.Context, name string, n nic.NIC) error {
	i := slices.IndexFunc(n.IP, netip.Addr.Is4)
	if i < 0 {
		return nil
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
	}
	return usernet.AwaitAddress(ctx, name, mac, n.IP[i])
}

// joinOwn puts a NIC that is to be on a network of this user on its switch.
func joinOwn(ctx context.Context, s *nic.Spec) error {
	joined, err := userdirs.Join(s, os.Getenv)
	if err != nil || !joined {
		return err
	}
	return userdirs.Settle(ctx, s, os.Getenv)
}

// startOwn starts a network of this user if it does not run.
func (a *app) startOwn(ctx context.Context, name string) error {
	if runs, err := userdirs.Runs(ctx, name); err != nil || runs {
		return err
	}
	return a.withNetworks(ctx, &networkFlags{}, func(m *network.Manager) error {
		_, _, err := m.Apply(ctx, name)
		return err
	})
}
