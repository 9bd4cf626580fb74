// Package testvm boots tiny virtual machines for tests, and for people who want to try vmnet:
// Debian's kernel, an initramfs built for each start, and one static program in it that serves the
// test's requests (package agent).
package testvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vmnet/internal/cli/console"
	"vmnet/testvm/agent"
)

// VM is a running machine. It ends when the context of its Start ends, at Stop, or by itself; then
// its files are removed. QEMU ends when this process does, even if that is killed.
type VM struct {
	// Guest is the connection to the program inside. Guest.Close frees Agent for other clients.
	Guest *agent.Guest
	// Argv is QEMU's command line.
	Argv []string
	// QMP is the path of the monitor's socket; empty if there is none.
	QMP string
	// Agent is the path of the agent's socket.
	Agent string

	config  Config
	dir     string   // holds the initramfs, logs and sockets
	state   *os.File // of a guest that has booted; nil if this one boots; owned
	process process
}

// Start boots a machine and returns when its guest answers, or with NoWait when QEMU runs. Its
// errors include the last output of QEMU and of the guest's console. When ctx ends, the machine is
// killed, also after Start has returned.
func Start(ctx context.Context, c Config) (*VM, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	vm := &VM{config: c}
	if err := vm.prepare(ctx); err != nil {
		_ = os.RemoveAll(vm.dir)
		return nil, fmt.Errorf("start guest %s: %w", c.Name, err)
	}
	c.Logf("guest %s: %s", c.Name, console.Quote(vm.Argv))
	start := time.Now()
	vm.process.start(ctx, vm)
	if vm.state != nil {
		_ = vm.state.Close() // QEMU has its own
	}
	info, err := vm.boot(ctx)
	if err != nil {
		return nil, vm.failed(err)
	}
	if !c.NoWait {
		c.Logf("guest %s: kernel %s answered after %s", c.Name, info.Kernel, time.Since(start).Round(time.Millisecond))
	}
	return vm, nil
}

// prepare creates the machine's directory, with the initramfs in it, and the command line.
func (vm *VM) prepare(ctx context.Context) error {
	c := vm.config
	var err error
	if vm.dir, err = os.MkdirTemp("", "testvm-"); err != nil {
		return err
	}
	parts, err := MakeParts(ctx, c, vm.dir)
	if err != nil {
		return err
	}
	f := Files{
		Kernel: parts.Kernel, Initramfs: parts.Initramfs, QMP: c.QMP, Agent: c.Agent,
		Console: vm.path("console"),
	}
	if f.QMP == "" {
		f.QMP = vm.path("qmp")
	}
	if f.Agent == "" {
		f.Agent = vm.path("agent")
	}
	c.QMP, c.Agent, c.Accel = f.QMP, f.Agent, accel(c.Accel)
	if c.QMP != "none" {
		vm.QMP = c.QMP
	}
	vm.Agent = c.Agent
	if vm.Argv, err = CommandLine(c, f); err != nil {
		return err
	}
	vm.config = c
	vm.warm(ctx, parts)
	return nil
}

func (vm *VM) path(name string) string { return filepath.Join(vm.dir, name) }

// boot waits until QEMU runs and, without NoWait, its guest answers.
func (vm *VM) boot(ctx context.Context) (agent.Info, error) {
	limit := vm.config.BootTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	err := vm.connect(ctx)
	if err != nil {
		return agent.Info{}, err
	}
	if vm.config.NoWait {
		return agent.Info{}, vm.monitored(ctx)
	}
	info, err := vm.Guest.WaitReady(ctx)
	if err == nil {
		err = vm.resume(ctx)
	}
	return info, err
}

// connect opens the agent's socket once QEMU has created it.
func (vm *VM) connect(ctx context.Context) error {
	for {
		var err error
		if vm.Guest, err = agent.Dial(ctx, vm.config.Name, vm.Agent); err == nil {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-vm.Done():
			return errors.New("QEMU has ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// failed ends the machine and adds what is known about the reason to err.
func (vm *VM) failed(err error) error {
	select {
	case <-vm.Done():
	case <-time.After(time.Second / 2): // between the end of the socket and that of the process
	}
	ended := ""
	select {
	case <-vm.Done():
		ended = "\nQEMU ended: " + vm.process.status()
	default:
	}
	vm.Stop()
	story := ended + section("QEMU said", vm.process.stderr) + section("the console's last lines", vm.Console())
	return fmt.Errorf("start guest %s: %w%s", vm.config.Name, err, story)
}

// section is a titled piece of a longer error, with the last lines of text.
func section(title, text string) string {
	const keep = 20
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(text, "\r", "")), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return ""
	}
	lines = lines[max(0, len(lines)-keep):]
	return "\n" + title + ":\n\t" + strings.Join(lines, "\n\t")
}
