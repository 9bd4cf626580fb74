// Package userdirs knows where the networks of a user who is not root are, and puts NICs on them.
package userdirs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/tapmgr/nic"
)

// Of returns the directories of a user's networks: of their files, and of their leases and logs, as
// the XDG Base Directory Specification places them. getenv returns variables of the user's
// environment.
func Of(getenv func(string) string) (configs config.Dir, state string, err error) {
	of := func(variable, below string) string {
		if dir := getenv(variable); filepath.IsAbs(dir) {
			return dir
		}
		home := getenv("HOME")
		if !filepath.IsAbs(home) {
			err = fmt.Errorf("neither HOME nor %s is set to a path", variable)
		}
		return filepath.Join(home, below)
	}
	configs = config.Dir(filepath.Join(of("XDG_CONFIG_HOME", ".config"), "vmnet", "networks.d"))
	return configs, filepath.Join(of("XDG_STATE_HOME", ".local/state"), "vmnet", "networks"), err
}

// Join puts a NIC on the switch of a network of the user, if the user has one of that name, and
// reports whether it has. A network of root has the NIC otherwise.
func Join(s *nic.Spec, getenv func(string) string) (joined bool, err error) {
	configs, _, err := Of(getenv)
	if err != nil || config.CheckName(s.Network) != nil {
		return false, nil
	}
	if _, err := os.Lstat(configs.Path(s.Network)); err != nil {
		return false, nil
	}
	sw := nic.Switch{} // or what --via says
	if s.Switch != nil {
		sw = *s.Switch
	}
	sw.Name = s.Network
	s.Switch, s.Network = &sw, ""
	return true, nil
}

// Settle gives a NIC that Join has put on a network what the network's file says of its port. It
// reads the file. If the guest cannot have an address that it asks for, the error says why.
func Settle(ctx context.Context, s *nic.Spec, getenv func(string) string) error {
	configs, state, err := Of(getenv)
	if err != nil {
		return err
	}
	n, err := configs.Read(s.Switch.Name)
	if err != nil {
		return err
	}
	s.Port.Isolated = s.Port.Isolated || n.Isolated
	if s.MTU == 0 && nic.IsVirtio(cmp.Or(s.Model, nic.DefaultModel)) { // others cannot tell the guest
		s.MTU = n.MTU
	}
	if len(s.IP) == 0 {
		return nil
	}
	ports, err := portsOf(ctx, n.Name)
	if err != nil {
		return err
	}
	leases, err := dhcp.ReadLeases(state, n.Name)
	if err == nil {
		err = checkIP(n, s, ports, leases)
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	return nil
}

// Runs reports whether the switch of a network of this user answers.
func Runs(ctx context.Context, name string) (bool, error) {
	c, err := control.Dial(ctx, name)
	if errors.Is(err, control.ErrNotRunning) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, c.Close()
}

// portsOf returns the ports of the switch of a network; none if that does not run.
func portsOf(ctx context.Context, name string) ([]control.Port, error) {
	c, err := control.Dial(ctx, name)
	if errors.Is(err, control.ErrNotRunning) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Ports(ctx)
}

// Leases returns the directories of the lease files of this user's networks: none for root, whose
// networks are the machine's.
func Leases(getenv func(string) string) []string {
	if os.Geteuid() == 0 {
		return nil
	}
	if _, state, err := Of(getenv); err == nil {
		return []string{state}
	}
	return nil
}
