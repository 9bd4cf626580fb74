package tapmgr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/control/server"
	"vmnet/internal/nstest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// serveSwitch is the main of a process that runs a switch until its stdin ends, at the latest with
// the test.
func serveSwitch(path string) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	l, err := server.Listen(path)
	if err != nil {
		return err
	}
	sw := vswitch.New(vswitch.Config{})
	s := server.New(sw, control.Info{Name: path, Version: "test"})
	err = errors.Join(s.Serve(ctx, l), sw.Close(), l.Close())
	s.Close()
	return err
}

// userSwitch is a switch that a process of its own runs.
type userSwitch struct {
	*host
	path string
	cmd  *exec.Cmd
}

// runSwitch runs a switch, of which the host's Manager knows.
func (h *host) runSwitch() *userSwitch {
	h.Helper()
	s := &userSwitch{host: h, path: filepath.Join(h.tempDir(), "sw")}
	h.AskSwitches, h.Switches = true, []string{s.path}
	h.onUnseen(func(text string) { h.Log("notice: " + text) })
	s.start()
	h.Cleanup(s.kill)
	return s
}

// tempDir has a name that is short enough for a socket.
func (h *host) tempDir() string {
	h.Helper()
	dir, err := os.MkdirTemp("", "vs")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (s *userSwitch) start() {
	s.Helper()
	s.cmd = s.command(order{Serve: s.path})
	s.cmd.Cancel = func() error { return nil } // it is a test that ends it
	s.run()
}

// run starts the process, and waits until it listens.
func (s *userSwitch) run() {
	s.Helper()
	s.cmd.Stderr = os.Stderr
	if _, err := s.cmd.StdinPipe(); err != nil { // Wait closes it
		s.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	nstest.Eventually(s, 30*time.Second, "the switch listens", func() bool {
		c, err := control.Dial(s.context(time.Second), s.path)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func (s *userSwitch) kill() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// asksAgain takes another Manager: for a while one does not ask a switch that did not answer.
func (s *userSwitch) asksAgain() {
	s.Helper()
	m, err := tapmgr.Open(s.ns.Path())
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(m.Close)
	m.AskSwitches, m.Switches, m.Progress = true, s.Switches, s.Progress
	s.Manager = m
}

// settledByAnswer reconciles with the answer of the switch. A switch that does not answer in time,
// as on a busy machine, is left alone, so that reconcile is repeated then.
func (s *userSwitch) settledByAnswer() {
	s.Helper()
	former := s.Progress
	nstest.Eventually(s, 30*time.Second, "the switch answers reconcile in time", func() bool {
		var silent atomic.Bool
		s.asksAgain()
		s.onUnseen(func(text string) {
			former(tapmgr.Unseen, text)
			if strings.Contains(text, "no answer within") {
				silent.Store(true)
			}
		})
		s.settled()
		return !silent.Load()
	})
	s.Progress = former
}

func (s *userSwitch) signal(sig syscall.Signal) {
	s.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.Fatal(err)
	}
	if sig == syscall.SIGSTOP {
		nstest.Eventually(s, 10*time.Second, "the switch is stopped", func() bool {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
			return err == nil && strings.Contains(string(status), "State:\tT")
		})
	}
}

func (s *userSwitch) ports() []control.Port {
	s.Helper()
	c, err := control.Dial(s.context(20*time.Second), s.path)
	if err != nil {
		s.Fatal(err)
	}
	defer c.Close()
	ports, err := c.Ports(s.context(20 * time.Second))
	if err != nil {
		s.Fatal(err)
	}
	return ports
}

// noPort demands that soon the switch has none.
func (s *userSwitch) noPort() {
	s.Helper()
	nstest.Eventually(s, 20*time.Second, "the switch has no port", func() bool { return len(s.ports()) == 0 })
}

// on is a NIC on the switch.
func (s *userSwitch) on(g *guest, nicID string, by nic.By) nic.Spec {
	spec := g.spec(nicID)
	spec.Bridge, spec.Switch = "", &nic.Switch{Name: s.path, By: by}
	return spec
}

var bothBys = []nic.By{nic.BySocket, nic.ByTap}

// eachBy runs a test for each way from QEMU to a switch.
func eachBy(t *testing.T, test func(t *testing.T, s *userSwitch, by nic.By)) {
	for _, by := range bothBys {
		t.Run(string(by), func(t *testing.T) {
			t.Parallel() // they wait most of the time
			test(t, newHost(t).runSwitch(), by)
		})
	}
}
