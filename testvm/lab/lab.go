// Package lab boots lab hosts: Debian's full kernel in a virtual machine whose root is this
// machine's file system. Files written there stay in its memory. Programs run in it as root, as on
// a real host with loadable modules, vhost-net, bridge VLAN filtering and other features that this
// machine's kernel may lack.
//
// Tests that need one are functions TestLab* in any package; they begin with Inside, and
// TestLabHost of this package runs them.
package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmnet/testvm"
	"vmnet/testvm/agent"
)

// setupCure is the cure if something that setup.sh installs is missing.
const setupCure = "run 'make setup', or testvm/setup.sh --kernel full"

// Config describes a lab host. The zero value is usable.
type Config struct {
	// CPUs is the number of virtual processors; 0 means 2.
	CPUs int
	// MemoryMiB is its memory, of which written files may use three quarters; 0 means 1536.
	MemoryMiB int
	// Modules are loaded at boot. Others are loaded on demand, as on any host: by a link or a
	// queueing discipline of that kind, or by /dev/vhost-net.
	Modules []string
	// NICs are those that it boots with; it needs none.
	NICs []testvm.NIC
	// Terminal runs a shell on this process's stdin and stdout; see testvm.Config.
	Terminal bool
	// BootTimeout bounds the wait for the boot, which takes 5 s on an idle machine; 0 means 2
	// minutes.
	BootTimeout time.Duration
	// Init and Logf are those of testvm.Config.
	Init string
	Logf func(format string, args ...any)
}

// Host is a running lab host. It ends when the context of its Start ends, at Stop, or when this
// process exits, even if it is killed.
type Host struct {
	*testvm.VM
}

// Start boots a lab host. Its errors include the last lines of the console.
func Start(ctx context.Context, c Config) (*Host, error) {
	kernel, err := FindKernel()
	if err != nil {
		return nil, err
	}
	vm, err := testvm.Start(ctx, c.machine(kernel))
	if err != nil {
		return nil, err
	}
	h := &Host{vm}
	if err := h.LoadModules(ctx, c.Modules...); err != nil {
		h.Stop()
		return nil, err
	}
	return h, nil
}

func (c Config) machine(k testvm.Kernel) testvm.Config {
	return testvm.Config{
		Name:        "lab",
		CPUs:        cmp.Or(c.CPUs, 2),
		MemoryMiB:   cmp.Or(c.MemoryMiB, 1536),
		NICs:        c.NICs,
		BootTimeout: cmp.Or(c.BootTimeout, 2*time.Minute),
		Terminal:    c.Terminal,
		Init:        c.Init,
		Logf:        c.Logf,
		Kernel:      k,
		Root:        "/",
	}
}

// FindKernel finds the full kernel that setup.sh unpacked.
func FindKernel() (testvm.Kernel, error) {
	k, err := testvm.FindKernelOf("full")
	if err == nil {
		_, err = os.Stat(filepath.Join(k.Modules, "modules.dep.bin"))
	}
	if err != nil {
		return testvm.Kernel{}, fmt.Errorf("find the lab host's kernel: %w (%s)", err, setupCure)
	}
	return k, nil
}

// Command is a program to run in a lab host.
type Command struct {
	// Argv is the program and its arguments. The program is found by PATH.
	Argv []string
	// Dir is the working directory; empty means the root.
	Dir string
	// Env is the environment; nil means this process's.
	Env []string
	// Stdin is its standard input, up to 1 MiB.
	Stdin string
	// Stdout and Stderr receive its output as it comes; nil discards it. They may be the same.
	// While one of them blocks, so does every request to this host.
	Stdout, Stderr io.Writer
}

// maxStdin keeps a request well below agent.MaxLine.
const maxStdin = 1 << 20

// Run runs a command as root and returns its exit status, which is -1 if a signal ended it. When
// ctx ends, the command is killed with its process group.
func (h *Host) Run(ctx context.Context, c Command) (status int, err error) {
	if len(c.Stdin) > maxStdin {
		return 0, fmt.Errorf("run %s in the lab host: stdin of %d bytes is longer than %d",
			c.Argv, len(c.Stdin), maxStdin)
	}
	if c.Env == nil {
		c.Env = environment()
	}
	return h.Guest.Stream(ctx, agent.Command{Argv: c.Argv, Dir: c.Dir, Env: c.Env, Stdin: c.Stdin}, c.Stdout, c.Stderr)
}

// environment returns this process's environment, without the directory in /run that a lab host
// does not have. Its PATH includes root's directories: commands in a lab host run as root, even if
// the user's own PATH lacks them.
func environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "XDG_RUNTIME_DIR=") })
	path := filepath.SplitList(os.Getenv("PATH"))
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if !slices.Contains(path, dir) {
			path = append(path, dir)
		}
	}
	return append(env, "PATH="+strings.Join(path, string(filepath.ListSeparator)))
}

// Output is Run for a short command: a nonzero status is an error with the command's output.
func (h *Host) Output(ctx context.Context, argv ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	status, err := h.Run(ctx, Command{Argv: argv, Stdout: &stdout, Stderr: &stderr})
	if err == nil && status != 0 {
		err = fmt.Errorf("lab host: %s: exit status %d: %s", strings.Join(argv, " "), status,
			bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
}

// LoadModules loads kernel modules and their dependencies. Modules that are already loaded are not
// an error.
func (h *Host) LoadModules(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	_, err := h.Output(ctx, slices.Concat([]string{"modprobe", "--all", "--"}, names)...)
	return err
}

// ReadFile reads a file in the lab host.
func (h *Host) ReadFile(ctx context.Context, name string) ([]byte, error) {
	content, err := h.Output(ctx, "cat", "--", name)
	if err != nil && strings.Contains(err.Error(), "No such file") {
		err = errors.Join(fs.ErrNotExist, err)
	}
	return []byte(content), err
}
