package vswitch_test

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// A holder is a process that has a guest's end and answers frames as long as it runs.
type holder struct {
	process *os.Process
	port    *vswitch.Port
}

// startHolder adds port "held" on a datagram socket, or on the kernel side of a tap of h.
func startHolder(t *testing.T, sw *vswitch.Switch, kind string, h *host) *holder {
	t.Helper()
	var wire *vswitch.Wire
	var far *os.File
	if kind == "tap" {
		tap, err := tun.Create(h.ns, h.device, false)
		if err != nil {
			t.Fatal(err)
		}
		defer tap.Close()
		if err := h.nl.LinkSetUp(h.link(h.device)); err != nil {
			t.Fatal(err)
		}
		far, wire = tap.Queues()[0], openPacket(t, h, h.device)
	} else {
		var err error
		if wire, far, err = vswitch.SocketPair(0); err != nil {
			t.Fatal(err)
		}
		defer far.Close()
	}
	p, err := os.StartProcess("/proc/self/exe", os.Args[:1], &os.ProcAttr{
		Env: append(os.Environ(), "VMNET_TEST_HOLDER="+kind), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, far},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(p) })
	return &holder{p, addPort(t, sw, "held", wire, guestPort())}
}

// end kills the process and waits for it. A second call does nothing.
func end(p *os.Process) {
	_ = p.Kill()
	_, _ = p.Wait()
}

// A prober is a station that sends frames to the holder.
type prober struct {
	t  *testing.T
	fd int
}

// answers reports whether the holder answers within a time.
func (p prober) answers(within time.Duration) bool {
	p.t.Helper()
	b := make([]byte, 2000)
	for end := time.Now().Add(within); time.Now().Before(end); {
		p.load(1)
		if n, err := unix.Read(p.fd, b); err == nil && n > 12 && b[0] == 2 && b[6] == 2 && b[11] == 0x77 {
			return true
		}
	}
	return false
}

// load sends n frames to the holder. The switch has learned its address from its answers.
func (p prober) load(n int) {
	frame := append([]byte{2, 0, 0, 0, 0, 0x77, 2, 0, 0, 0, 0, 0x78, 0x88, 0xb5}, make([]byte, 1000)...)
	for range n {
		_, _ = unix.Write(p.fd, frame)
	}
}

// TestLiveHolders stops, continues, kills and restarts the processes that have the other ends of
// ports, under load. The other ports must never stall.
func TestLiveHolders(t *testing.T) {
	for _, kind := range []string{"socket", "tap"} {
		t.Run(kind, func(t *testing.T) {
			sw := newSwitch(t)
			a, b := tapHost(t, sw, 0, 1, vport.Config{}), tapHost(t, sw, 1, 1, vport.Config{})
			s, p := newStream(t, a, b), prober{t, socketGuest(t, sw, "probe", vport.Config{})}
			moves := func(when string) {
				t.Helper()
				before := s.bytes.Load()
				nstest.Eventually(t, 20*time.Second, "the others go on "+when, func() bool {
					return s.bytes.Load() > before+1<<20
				})
			}
			where := newHost(t, 100, "tap0")
			settle(t)
			files, goroutines := openFiles(t), runtime.NumGoroutine()
			for round := range 3 {
				h := startHolder(t, sw, kind, where)
				if !p.answers(10 * time.Second) {
					t.Fatalf("round %d: no answer: %+v", round, h.port.Stats())
				}
				stop(t, h, unix.SIGSTOP)
				for range 100 {
					p.load(100)
				}
				moves("while it is stopped")
				if kind == "socket" { // a tap's kernel drops frames silently
					nstest.Eventually(t, 20*time.Second, "its queue is full", func() bool {
						p.load(10)
						return h.port.Dropped(vswitch.Full) > 0
					})
				}
				if err := h.port.Err(); err != nil {
					t.Errorf("a port of a stopped process has ended: %v", err)
				}
				stop(t, h, unix.SIGCONT)
				if !p.answers(10 * time.Second) {
					t.Errorf("round %d: no answer after SIGCONT: %+v", round, h.port.Stats())
				}
				end(h.process)
				nstest.Eventually(t, 20*time.Second, "its port ends", func() bool {
					p.load(1)
					return h.port.Err() != nil
				})
				moves("when it is dead")
				if err := sw.RemovePort("held"); err != nil {
					t.Error(err)
				}
			}
			nstest.Eventually(t, 20*time.Second, "all files are closed", func() bool {
				return openFiles(t) <= files && runtime.NumGoroutine() <= goroutines
			})
			if _, rings := countFiles(t); rings > len(sw.Ports()) {
				t.Errorf("%d rings for %d ports of one queue each", rings, len(sw.Ports()))
			}
		})
	}
}

// stop sends a signal to the holder.
func stop(t *testing.T, h *holder, sig os.Signal) {
	t.Helper()
	if err := h.process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// openFiles counts the open files of this process without its rings. Each queue of a port has a
// ring from its first burst to a tap on, until the port is removed.
func openFiles(t *testing.T) int {
	t.Helper()
	all, rings := countFiles(t)
	return all - rings
}

func countFiles(t *testing.T) (all, rings int) {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if target, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && target == "anon_inode:[io_uring]" {
			rings++
		}
	}
	return len(files), rings
}
