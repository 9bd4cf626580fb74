package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/sandbox"
)

// sandboxMode returns the mode of --sandbox or, if it is not given, of the environment.
func sandboxMode(cmd *cobra.Command, given sandbox.Mode) (sandbox.Mode, error) {
	env := os.Getenv(sandboxEnv)
	if env == "" || cmd.Flags().Changed("sandbox") {
		return given, nil
	}
	mode, err := sandbox.ParseMode(env)
	if err != nil {
		return "", usagef("%s=%w", sandboxEnv, err)
	}
	return mode, nil
}

// sandboxEnv is the environment variable with the default of --sandbox.
const sandboxEnv = "VMNET_SANDBOX"

func sandboxFlag(cmd *cobra.Command, mode *sandbox.Mode) {
	parse := func(s string) (err error) {
		*mode, err = sandbox.ParseMode(s)
		return err
	}
	*mode = sandbox.On
	cmd.Flags().Var(nicflags.Value("MODE", string(sandbox.On), parse), "sandbox",
		"once the ports are open, refuse other system calls and files: on, strict (end at such a call) or off")
	var words []cobra.Completion
	for _, m := range sandbox.Modes {
		words = append(words, string(m))
	}
	complete(cmd, "sandbox", cobra.FixedCompletions(words, noFiles))
}

// confine puts this process into its sandbox, and returns what is in force. What the kernel refuses
// is a note: the switch serves its guests all the same.
func (a *app) confine(o *runVerb, socket string, ports []control.Port) []string {
	_, _ = time.Now().Zone() // reads the time zone's file
	c := sandbox.Config{
		Mode:     o.sandbox,
		LockDirs: []string{filepath.Dir(socket)},
		RemoveDirs: []string{
			filepath.Dir(socket), "/run", "/tmp", "/var/tmp", "/dev/shm", os.Getenv("XDG_RUNTIME_DIR"),
		},
	}
	if filepath.Base(socket) == control.SocketName {
		c.RemoveDirs = append(c.RemoveDirs, filepath.Dir(filepath.Dir(socket)))
	}
	for _, p := range ports {
		if p.Kind == control.VhostUser || p.Kind == control.Stream {
			c.RemoveDirs = append(c.RemoveDirs, filepath.Dir(p.Device))
		}
	}
	on, err := sandbox.Enter(c)
	if err != nil {
		a.note(fmt.Sprintf("the switch is not fully confined: %v (--sandbox off says nothing)", err))
	}
	return on
}
