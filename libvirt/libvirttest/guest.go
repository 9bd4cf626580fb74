package libvirttest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmnet/testvm"
	"vmnet/testvm/agent"
)

// Guest is a domain with a tiny guest (package testvm) in it.
type Guest struct {
	*agent.Guest // nil before Boot
	Name         string

	daemon *Daemon
	agent  string // its socket
	log    string // of its console
}

// NewGuest defines a domain that boots a tiny guest, and does not start it. The agent's socket and
// the console log are the test's.
func (d *Daemon) NewGuest(tb testing.TB, dom testvm.Domain) *Guest {
	tb.Helper()
	testvm.Require(tb)
	dir, err := os.MkdirTemp("", "libvirtguest")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	parts, err := testvm.MakeParts(tb.Context(), testvm.Config{Name: dom.Name}, dir)
	if err != nil {
		tb.Fatal(err)
	}
	dom.Agent, dom.Console = filepath.Join(dir, "agent"), filepath.Join(dir, "console")
	d.Define(dom.XML(parts))
	return &Guest{Name: dom.Name, daemon: d, agent: dom.Agent, log: dom.Console}
}

// Start starts the domain and does not wait for its guest.
func (g *Guest) Start() {
	g.daemon.tb.Helper()
	g.daemon.Virsh("start", g.Name)
}

// Boot starts the domain and waits for its guest.
func (g *Guest) Boot() {
	g.daemon.tb.Helper()
	g.Start()
	g.Await()
}

// bootTime bounds the boot of a guest, which takes 3 s on an idle machine.
const bootTime = 2 * time.Minute

// Await waits until the guest of a started domain answers.
func (g *Guest) Await() {
	tb := g.daemon.tb
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bootTime)
	defer cancel()
	failed := func(err error) {
		tb.Helper()
		console, _ := os.ReadFile(g.log)
		tb.Fatalf("%v; its console:\n%s", err, console)
	}
	var err error
	if g.Guest, err = agent.Dial(ctx, g.Name, g.agent); err != nil {
		failed(err)
	}
	tb.Cleanup(func() { _ = g.Close() })
	if _, err := g.WaitReady(ctx); err != nil {
		failed(err)
	}
}

// QEMU returns the guest's process id.
func (g *Guest) QEMU() int {
	g.daemon.tb.Helper()
	return g.daemon.QEMU(g.Name)
}
