package testvm

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// keepOutput is the number of bytes that are read from the end of a log.
const keepOutput = 256 << 10

// process is the QEMU process. Its outcome may be read once done is closed.
type process struct {
	cancel  context.CancelFunc
	started chan struct{} // closed when cmd.Process is set, or the start failed
	done    chan struct{}
	cmd     *exec.Cmd

	err             error
	console, stderr string
}

// start starts QEMU and the goroutine that owns it. A failed start closes done too.
func (p *process) start(ctx context.Context, vm *VM) {
	ctx, p.cancel = context.WithCancel(ctx)
	p.started, p.done = make(chan struct{}), make(chan struct{})
	p.cmd = exec.CommandContext(ctx, vm.Argv[0], vm.Argv[1:]...)
	p.cmd.ExtraFiles = vm.config.ExtraFiles
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   !vm.config.Terminal, // this program handles Ctrl-C first
	}
	go p.own(vm)
	<-p.started
}

// own waits for the end of QEMU and cleans up after it.
func (p *process) own(vm *VM) {
	// The kernel sends the death signal when the thread that forked ends, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if name := vm.config.Netns; name != "" {
		err := within(name, func() { p.run(vm) })
		p.err = cmp.Or(p.err, err)
	} else {
		p.run(vm)
	}
	p.cancel()
	p.console, p.stderr = readTail(vm.path("console")), readTail(vm.path("stderr"))
	for _, name := range []string{vm.QMP, vm.Agent} {
		if info, err := os.Lstat(name); err == nil && info.Mode().Type() == os.ModeSocket {
			_ = os.Remove(name)
		}
	}
	_ = os.RemoveAll(vm.dir)
	select {
	case <-p.started:
	default:
		close(p.started)
	}
	close(p.done)
}

// within calls f with its thread in a network namespace.
func within(netnsName string, f func()) error {
	ns, err := netns.Open(netnsName)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error { f(); return nil })
}

func (p *process) run(vm *VM) {
	log, err := os.Create(vm.path("stderr"))
	if err != nil {
		p.err = err
		return
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if vm.config.Terminal {
		p.cmd.Stdin, p.cmd.Stdout = os.Stdin, os.Stdout
	}
	if p.err = p.cmd.Start(); p.err != nil {
		return
	}
	close(p.started)
	p.err = p.cmd.Wait()
}

// status returns how QEMU ended.
func (p *process) status() string {
	if p.err == nil {
		return "exit status 0"
	}
	return p.err.Error()
}

// readTail returns the last keepOutput bytes of a file, or nothing if it cannot be read.
func readTail(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > keepOutput {
		_, _ = f.Seek(-keepOutput, io.SeekEnd)
	}
	content, _ := io.ReadAll(io.LimitReader(f, keepOutput))
	return string(content)
}

// Pid returns QEMU's process id.
func (vm *VM) Pid() int { return vm.process.cmd.Process.Pid }

// Done returns a channel that is closed when QEMU has ended and its files are removed.
func (vm *VM) Done() <-chan struct{} { return vm.process.done }

// Wait waits until QEMU has ended and returns how: nil means with status 0.
func (vm *VM) Wait(ctx context.Context) error {
	select {
	case <-vm.Done():
		return vm.process.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Signal sends QEMU a signal.
func (vm *VM) Signal(s os.Signal) error { return vm.process.cmd.Process.Signal(s) }

// Kill sends QEMU SIGKILL and does not wait, to simulate a crash. It is not an error if QEMU has
// already ended.
func (vm *VM) Kill() error {
	if err := vm.Signal(unix.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Stop kills QEMU, waits for its end and removes the machine's files. It may be called more than
// once.
func (vm *VM) Stop() {
	vm.process.cancel()
	<-vm.Done()
	if vm.Guest != nil {
		_ = vm.Guest.Close()
	}
}

// Console returns the output of the guest's serial console, at most the last 256 KiB, also after
// the guest's end.
func (vm *VM) Console() string {
	select {
	case <-vm.Done():
		return vm.process.console
	default:
		return readTail(vm.path("console"))
	}
}
