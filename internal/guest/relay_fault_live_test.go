package guest

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/nstest"
	"vmnet/libvirt"
	"vmnet/qmp"
	"vmnet/step"
)

// faults fails every step after it was done: the way back leaves nothing.
func (r *relayed) faults() {
	_, c := r.dial()
	fault := errors.New("fault")
	for i := 0; ; i++ {
		n, files, closeTap := r.nic(c, "vmnet-net0", "vr0")
		steps := c.PlugSteps(n, files)
		if i == len(steps) {
			closeTap()
			return
		}
		err := step.Run(r.within(60*time.Second), steps,
			func(ctx context.Context, s step.Step, do func(context.Context) error) error {
				if err := do(ctx); err != nil || s.Name != steps[i].Name {
					return err
				}
				return fault
			})
		if !errors.Is(err, fault) || strings.Contains(err.Error(), "undo") {
			r.Errorf("%s: %v", steps[i].Name, err)
		}
		closeTap()
		r.wantGone("vr0")
	}
}

// qemuStops ends the context of each step while QEMU is paused. Nothing hangs, and once QEMU
// continues it closes everything, although nothing waits for that any more.
func (r *relayed) qemuStops() {
	qemu := r.g.QEMU()
	defer r.signal(qemu, syscall.SIGCONT)
	for i := 1; ; i++ {
		conn, c := r.dial()
		n, files, closeTap := r.nic(c, "vmnet-net0", "vr0")
		steps := c.PlugSteps(n, files)
		if i == len(steps) {
			closeTap()
			return
		}
		var start time.Time
		err := step.Run(r.within(60*time.Second), steps,
			func(ctx context.Context, s step.Step, do func(context.Context) error) error {
				if s.Name != steps[i].Name {
					return do(ctx)
				}
				r.signal(qemu, syscall.SIGSTOP)
				start = time.Now()
				ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
				defer cancel()
				return do(ctx)
			})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, qmp.ErrUnanswered) {
			r.Errorf("%s: %v", steps[i].Name, err)
		}
		closeTap()
		if err := errors.Join(c.Close(), conn.Close()); err != nil || time.Since(start) > 12*time.Second {
			r.Errorf("%s: closed after %s, %v", steps[i].Name, time.Since(start), err)
		}
		r.Logf("%s: gave up after %s", steps[i].Name, time.Since(start).Round(time.Millisecond))
		r.signal(qemu, syscall.SIGCONT)
		start = time.Now()
		r.wantGone("vr0")
		r.Logf("given back after %s", time.Since(start).Round(time.Millisecond))
	}
}

// libvirtdStops ends what waits for libvirtd with its context, and goes on.
func (r *relayed) libvirtdStops() {
	_, c := r.dial()
	pid := r.virt.PID()
	r.signal(pid, syscall.SIGSTOP)
	defer r.signal(pid, syscall.SIGCONT)
	for range 3 {
		if _, err := c.Name(r.within(100 * time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) ||
			errors.Is(err, qmp.ErrClosed) {
			r.Error(err)
		}
	}
	r.signal(pid, syscall.SIGCONT)
	if name, err := c.Name(r.within(20 * time.Second)); name != r.g.Name || err != nil {
		r.Errorf("%q, %v", name, err)
	}
	r.signal(pid, syscall.SIGSTOP)
	_, _ = c.Name(r.within(100 * time.Millisecond))
	start := time.Now()
	if err := c.Close(); err != nil || time.Since(start) > 5*time.Second {
		r.Errorf("closed after %s, %v", time.Since(start), err)
	}
	r.signal(pid, syscall.SIGCONT)
}

// libvirtdRestarts with a command in flight and an fd in QEMU: the connection ends, and a new one
// cleans up.
func (r *relayed) libvirtdRestarts() {
	conn, c := r.dial()
	n, files, closeTap := r.nic(c, "vmnet-net0", "vr0")
	if err := c.GetFD(r.within(20*time.Second), qmp.QueueName(n.ID, 0), files.Queues[0]); err != nil {
		r.Fatal(err)
	}
	closeTap()
	events := c.Subscribe(64)
	pid := r.virt.PID()
	r.signal(pid, syscall.SIGSTOP)
	inFlight := make(chan error)
	go func() { inFlight <- c.NetdevDel(r.within(20*time.Second), "none") }()
	r.inFlight("qmp.(*Conn).await")
	r.signal(pid, syscall.SIGKILL)
	if err := <-inFlight; !errors.Is(err, qmp.ErrClosed) || !errors.Is(err, libvirt.ErrNoConnection) {
		r.Errorf("in flight: %v", err)
	}
	r.ended(c, events)
	if !errors.Is(c.Err(), libvirt.ErrNoConnection) {
		r.Error(c.Err())
	}
	_ = conn.Close()
	r.virt.Await()
	_, c = r.dial()
	if got := r.held(); len(got) != 1 {
		r.Errorf("QEMU holds %q", got)
	}
	if err := c.Rollback(r.within(20*time.Second), n.ID, 2); err != nil {
		r.Error(err)
	}
	r.wantGone("vr0")
}

// inFlight waits until a command waits for its answer in fn.
func (r *relayed) inFlight(fn string) {
	r.Helper()
	nstest.Eventually(r, 20*time.Second, "a command is in flight", func() bool { return nstest.Waiting(fn) == 1 })
}

// ended demands that the connection ends, and with it its subscriptions.
func (r *relayed) ended(c *qmp.Conn, s *qmp.Subscription) {
	r.Helper()
	select {
	case <-c.Done():
	case <-time.After(10 * time.Second):
		r.Fatal("the connection does not end")
	}
	if !errors.Is(c.Err(), qmp.ErrClosed) {
		r.Error(c.Err())
	}
	for range s.C { // as long as it is open
	}
	if _, err := c.Name(r.within(time.Second)); !errors.Is(err, qmp.ErrClosed) {
		r.Errorf("afterwards: %v", err)
	}
}

// destroyed ends the domain while a paused guest is asked for a NIC.
func (r *relayed) destroyed() {
	conn, c := r.dial()
	n, files, closeTap := r.nic(c, "vmnet-net0", "vr0")
	if err := c.Plug(r.within(60*time.Second), n, files); err != nil {
		r.Fatal(err)
	}
	closeTap()
	r.virt.Virsh("suspend", r.g.Name)
	unplug, events := make(chan error, 1), c.Subscribe(64)
	go func() { unplug <- c.Unplug(r.within(30*time.Second), n.ID, nil) }()
	r.inFlight("qmp.awaitGone")
	r.virt.Virsh("destroy", r.g.Name)
	if err := <-unplug; !errors.Is(err, qmp.ErrClosed) {
		r.Error(err)
	}
	r.ended(c, events)
	r.wantGone("vr0")
	dom, err := conn.LookupByName(r.within(20*time.Second), r.g.Name)
	if err != nil {
		r.Fatal(err)
	}
	if _, err := dialThroughLibvirt(r.within(20*time.Second), conn, dom); !errors.Is(err, qmp.ErrClosed) {
		r.Errorf("dial of what does not run: %v", err)
	}
	if err := conn.Err(); err != nil {
		r.Errorf("libvirt's connection: %v", err)
	}
}

// killed ends QEMU with a command in flight.
func (r *relayed) killed() {
	r.g.Boot()
	_, c := r.dial()
	qemu := r.g.QEMU()
	r.signal(qemu, syscall.SIGSTOP)
	command, events := make(chan error, 1), c.Subscribe(64)
	go func() { _, err := c.Name(r.within(30 * time.Second)); command <- err }()
	r.inFlight("qmp.(*Conn).await")
	r.signal(qemu, syscall.SIGKILL)
	if err := <-command; !errors.Is(err, qmp.ErrClosed) {
		r.Error(err)
	}
	r.ended(c, events)
}
