package doctor

import (
	"context"
	"os"

	"vmnet/internal/network"
	"vmnet/internal/network/server"
	"vmnet/internal/network/userdirs"
	"vmnet/internal/network/usernet"
)

// userNetworks checks what networks need that a user makes without root, and those that this user
// has.
func (m Machine) userNetworks(ctx context.Context) []Check {
	if m.NS == nil || m.Root != "" || os.Geteuid() == 0 {
		return nil
	}
	const name = "own networks"
	dir, state, err := userdirs.Of(os.Getenv)
	var names []string
	if err == nil {
		names, err = dir.Names()
	}
	if err != nil {
		return warn(name, "", "%v", err)
	}
	var checks []Check
	for _, err := range usernet.Lacks() {
		checks = append(checks, needed(len(names) > 0, name, "", err.Error())...)
	}
	if len(checks) > 0 {
		return checks
	}
	manager := &network.Manager{
		NS: m.NS, Dir: dir, State: state, Elsewhere: usernet.Place{State: state, Resolv: server.ResolvConf()},
	}
	if err := manager.Open(); err != nil {
		return fail(name, "", "%v", err)
	}
	defer manager.Close()
	for _, n := range names {
		checks = append(checks, lookAt(ctx, manager, n)...)
	}
	return append(checks, ok(name, "this user can have some without root, and has %d", len(names))...)
}
