package userdirs

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// startPatience bounds the start of a network.
const startPatience = time.Minute

// Start has the program vmnet, which find returns, start a network of the calling user. The program
// gets the caller's ids, and of the environment what says where programs and networks are.
func Start(ctx context.Context, name string, find func(program string) (string, error), getenv func(string) string,
) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	path, err := find("vmnet")
	if err != nil {
		return fmt.Errorf("network %s: it does not run: %w (vmnet network apply %s starts it)", name, err, name)
	}
	cmd := exec.CommandContext(ctx, path, "network", "apply", "--user", "--", name)
	cmd.Env = []string{}
	for _, key := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"} {
		if value := getenv(key); value != "" {
			cmd.Env = append(cmd.Env, key+"="+value)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		said := strings.TrimSpace(strings.TrimPrefix(string(out), "vmnet: "))
		return fmt.Errorf("network %s: %w: %s", name, err, said)
	}
	return nil
}
