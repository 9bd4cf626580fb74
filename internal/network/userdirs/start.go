package userdirs

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"vmnet/tapmgr/nic"
)

// startPatience bounds the start of the networks of a guest.
const startPatience = time.Minute

// Start has the program vmnet, which find returns, start the networks of NICs that Join has put on
// them, unless they run or dryRun is set, and gives the NICs what Settle does. The program gets the
// ids of this process, and of the environment what says where programs and networks are.
func Start(own []*nic.Spec, dryRun bool, find func(program string) (string, error), getenv func(string) string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	for _, s := range own {
		name := s.Switch.Name
		runs, err := Runs(ctx, name)
		if err != nil {
			return fmt.Errorf("network %s: %w", name, err)
		}
		if err := Settle(ctx, s, getenv); err != nil {
			return err
		}
		if runs || dryRun {
			continue
		}
		if err := start(ctx, name, find, getenv); err != nil {
			return fmt.Errorf("network %s: %w", name, err)
		}
	}
	return nil
}

func start(ctx context.Context, name string, find func(program string) (string, error), getenv func(string) string,
) error {
	path, err := find("vmnet")
	if err != nil {
		return fmt.Errorf("it does not run: %w (vmnet network apply %s starts it)", err, name)
	}
	cmd := exec.CommandContext(ctx, path, "network", "apply", "--user", "--", name)
	cmd.Env = []string{}
	for _, key := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"} {
		if value := getenv(key); value != "" {
			cmd.Env = append(cmd.Env, key+"="+value)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(strings.TrimPrefix(string(out), "vmnet: ")))
	}
	return nil
}
