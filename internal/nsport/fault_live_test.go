package nsport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

var errBroken = errors.New("broken by the test")

// failAt returns a Run in which step number i fails, after it was made if made is set.
func failAt(i int, made bool) step.Runner {
	return func(ctx context.Context, steps []step.Step) error {
		if i < len(steps) {
			do := steps[i].Do
			steps[i].Do = func(ctx context.Context) error {
				if made {
					return errors.Join(do(ctx), errBroken)
				}
				return errBroken
			}
		}
		return step.Run(ctx, steps, nil)
	}
}

// count returns how many steps a verb has.
func (x *h) count(verb func() error) (n int) {
	x.Helper()
	x.m.Run, x.m.DryRun = func(_ context.Context, steps []step.Step) error { n = len(steps); return nil }, true
	x.do(verb())
	x.m.Run, x.m.DryRun = nil, false
	return n
}

// TestLiveFails: an error in each step, or right after it, leaves nothing.
func TestLiveFails(t *testing.T) {
	x := newHost(t)
	before := x.links()
	for name, s := range map[string]Spec{"veth": x.onBridge(), "macvlan": x.onParent()} {
		attach := func() error { _, err := x.m.Attach(x.ctx(), s); return err }
		n := x.count(attach)
		if n < 6 {
			t.Fatalf("%s: only %d steps", name, n)
		}
		for i := range n {
			for _, made := range []bool{false, true} {
				x.m.Run = failAt(i, made)
				if err := attach(); !errors.Is(err, errBroken) {
					t.Fatalf("%s: step %d: %v", name, i, err)
				}
				x.wants(fmt.Sprintf("%s: left by an error in step %d", name, i), x.links(), before)
			}
		}
		x.m.Run = nil
	}
}

// The environment of a child that attaches and stalls before or after one of its steps.
const (
	stallEnv = "VMNET_TEST_NSPORT_STALL" // step, before or after, host, lock directory, kind, target
	stalled  = "stalled"
)

// stall is the main function of that child.
func stall() {
	var i int
	var made bool
	var host, dir, kind, target string
	_, err := fmt.Sscan(os.Getenv(stallEnv), &i, &made, &host, &dir, &kind, &target)
	if err != nil {
		panic(err)
	}
	m, err := Open(host)
	if err != nil {
		panic(err)
	}
	m.LockDir = dir
	m.Run = func(ctx context.Context, steps []step.Step) error {
		do := steps[i].Do
		steps[i].Do = func(ctx context.Context) error {
			if made {
				if err := do(ctx); err != nil {
					return err
				}
			}
			fmt.Println(stalled)
			for {
				_ = syscall.Pause() // until this process is killed
			}
		}
		return step.Run(ctx, steps, nil)
	}
	x := &h{}
	_, _ = fmt.Sscan(target, &x.pid)
	s := x.onBridge()
	if kind == Macvlan {
		s = x.onParent()
	}
	_, err = m.Attach(context.Background(), s)
	panic(err)
}

// kill runs a child up to a step, and kills it.
func (x *h) kill(kind string, i int, made bool) {
	x.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %t %s %s %s %d", stallEnv, i, made,
		x.host.Path(), x.m.LockDir, kind, x.pid))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	x.do(err)
	x.do(cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != stalled {
		x.Errorf("the child says %q, %v", line, err)
	}
	x.do(cmd.Process.Kill())
	if state, err := cmd.Process.Wait(); err != nil || !state.Sys().(syscall.WaitStatus).Signaled() {
		x.Errorf("%v, %v", state, err)
	}
	_ = out.Close()
}

// TestLiveKilled: whatever a killed attach has left is listed, and removed by detach, by the next
// attach or by reconcile.
func TestLiveKilled(t *testing.T) {
	x := newHost(t)
	before := x.links()
	for kind, s := range map[string]Spec{Veth: x.onBridge(), Macvlan: x.onParent()} {
		attach := func() error { _, err := x.m.Attach(x.ctx(), s); return err }
		n, moved := x.count(attach), 0
		for i := range n {
			made := i%2 == 1 || i == n-1
			x.kill(kind, i, made)
			// A namespace of which only the killed process had fds ends soon after it.
			nstest.Eventually(t, patience, "what is left is listed", func() bool {
				return x.links() == before || len(x.list()) == 1 && !strings.Contains(x.links(), "@")
			})
			left := x.list()
			if len(left) == 1 && (i < n-1 || !made) && left[0].State != "attaching" {
				t.Errorf("%s, step %d: %+v", kind, i, left)
			}
			switch moved++; moved % 3 {
			case 0:
				x.do(attach())
				x.detach(Which{ID: "web"})
			case 1:
				x.detach(Which{Netns: s.Netns})
			default:
				_, err := x.m.Reconcile(x.ctx(), false)
				x.do(err)
				if len(x.list()) > 0 { // the last step was made
					x.detach(Which{ID: "web"})
				}
			}
			nstest.Eventually(t, patience, fmt.Sprintf("%s: nothing is left by a kill in step %d", kind, i),
				func() bool { return x.links() == before })
		}
	}
}

// TestLiveReconcile: an end without a bridge is put back once the bridge exists again.
func TestLiveReconcile(t *testing.T) {
	x := newHost(t)
	x.attach(x.onBridge())
	there := x.links()
	br := x.link(x.nl, "br0")
	x.do(x.nl.Delete(br.Index))
	actions, err := x.m.Reconcile(x.ctx(), false)
	if err != nil || len(actions) != 1 || actions[0].Changed ||
		!strings.Contains(actions[0].Action, "br0 has gone") {
		t.Errorf("%+v, %v", actions, err)
	}
	if list := x.list(); len(list) != 1 || list[0].State != "no-bridge" {
		t.Errorf("%+v", list)
	}
	differs := func(mender nic.Mender) {
		t.Helper()
		found, err := Check(x.ctx(), x.host.Path())
		if err != nil || len(found) != 1 || found[0].Interface != "web-ns" || found[0].Want != "br0" ||
			found[0].MendedBy != mender {
			t.Errorf("%+v, %v", found, err)
		}
	}
	differs(nic.MendAdmin)
	x.do(x.nl.Create("bridge", rtnl.Name("br0"), rtnl.Index(br.Index), rtnl.Up(true)))
	differs(nic.MendReconcile)
	for _, dry := range []bool{true, false} {
		actions, err = x.m.Reconcile(x.ctx(), dry)
		if err != nil || len(actions) != 1 || !actions[0].Changed || actions[0].Error != "" {
			t.Errorf("dry %v: %+v, %v", dry, actions, err)
		}
	}
	x.wants("after reconcile", x.links(), there)
	if actions, err = x.m.Reconcile(x.ctx(), false); err != nil || len(actions) != 0 {
		t.Errorf("again: %+v, %v", actions, err)
	}
}
