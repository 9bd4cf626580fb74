package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"vmnet/internal/network/userdirs"
	"vmnet/tapmgr/nic"
)

// networkPatience bounds the start of a user's network.
const networkPatience = time.Minute

// ownNetworks puts the NICs that are to be on networks of the caller on their switches, for which
// no privilege is needed, and returns these NICs.
func (a *app) ownNetworks(o *launchOptions) (own []*nic.Spec, err error) {
	if a.p.Caller.Root() {
		return nil, nil
	}
	for i := range o.nics {
		s := &o.nics[i].spec
		joined, err := userdirs.Join(s, a.p.Getenv)
		if err != nil {
			return nil, err
		}
		if joined {
			own = append(own, s)
		}
	}
	return own, nil
}

// startNetworks has vmnet start the networks that do not run. It runs as the caller, without any
// privilege: this process has no ambient capability, and its ids are the caller's.
func (a *app) startNetworks(own []*nic.Spec, dryRun bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), networkPatience)
	defer cancel()
	for _, s := range own {
		name := s.Switch.Name
		runs, err := userdirs.Runs(ctx, name)
		if err == nil {
			if err := userdirs.Settle(ctx, s, a.p.Getenv); err != nil {
				return err
			}
		}
		if err == nil && !runs && !dryRun {
			err = a.applyNetwork(ctx, name)
		}
		if err != nil {
			return fmt.Errorf("network %s: %w", name, err)
		}
	}
	return nil
}

func (a *app) applyNetwork(ctx context.Context, name string) error {
	path, err := a.p.Find("vmnet")
	if err != nil {
		return fmt.Errorf("it does not run: %w (vmnet network apply %s starts it)", err, name)
	}
	cmd := exec.CommandContext(ctx, path, "network", "apply", "--user", "--", name)
	cmd.Env = []string{}
	for _, key := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"} {
		if value := a.p.Getenv(key); value != "" {
			cmd.Env = append(cmd.Env, key+"="+value)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(strings.TrimPrefix(string(out), "vmnet: ")))
	}
	return nil
}
