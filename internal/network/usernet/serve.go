package usernet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	swserver "vmnet/bridge/vswitch/control/server"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/network/child"
	"vmnet/internal/network/config"
	"vmnet/internal/network/tool"
)

// Config is what a supervisor needs.
type Config struct {
	Network *config.Network
	State   string       // the directory of the leases
	Resolv  string       // the host's resolv.conf
	Version string       // of this program
	Notice  func(string) // gets what is worth a line in a log
}

const (
	ageing    = 300 * time.Second // of the switch's addresses, as a bridge's
	addresses = 16384             // the most that it knows
	startTime = 20 * time.Second  // until a part of a network works
	wayPoll   = 2 * time.Second   // of the host's default routes
	poll      = 5 * time.Millisecond
)

// supervisor is a network that runs.
type supervisor struct {
	Config
	agent *agentClient
	sw    *swserver.Server
	work  chan *turn
	keys  map[string]bool // of the forwards that the agent has
	now   standing
}

// Serve runs a network until ctx ends or a client stops it, which is success, or until a part that
// cannot be replaced ends. It calls ready with the path of the switch's socket once guests are
// answered. Nothing is left when it returns.
func Serve(ctx context.Context, c Config, ready func(socket string)) (err error) {
	if err := errors.Join(Check(c.Network), CheckMachine()); err != nil {
		return err
	}
	catch(syscall.SIGPIPE)
	leaveProcessors()
	place, err := swserver.Prepare(c.Network.Name, os.Geteuid(), os.Getegid())
	if errors.Is(err, swserver.ErrRunning) {
		return fmt.Errorf("network %s: %w (vmnet switch stop %[1]s ends it)", c.Network.Name, err)
	}
	if err != nil {
		return err
	}
	names, reservations := namesDir(c.State, c.Network.Name), reservationFile(c.State, c.Network.Name)
	err = errors.Join(os.RemoveAll(names), os.MkdirAll(names, 0o700), os.WriteFile(reservations, nil, 0o600))
	if err != nil {
		place.Forget()
		return fmt.Errorf("files of the server: %w", errors.Join(err, os.RemoveAll(names)))
	}
	defer func() { err = errors.Join(err, os.RemoveAll(names), os.Remove(reservations)) }()
	listening := false
	defer func() {
		if !listening {
			place.Forget()
		}
	}()
	s := &supervisor{Config: c, work: make(chan *turn)}
	sw := vswitch.New(vswitch.Config{Ageing: ageing, Addresses: addresses, Notice: c.Notice})
	s.sw = swserver.New(sw, control.Info{Name: c.Network.Name, Version: c.Version, Ageing: int(ageing.Seconds())})
	defer s.sw.Close() // after the switch, whose ports it waits for
	defer func() { err = errors.Join(err, sw.Close()) }()
	if s.agent, err = startAgent(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.agent.close()) }()
	if err := s.plug(ctx); err != nil {
		return err
	}
	l, err := place.Listen()
	if err != nil {
		return err
	}
	listening = true
	defer func() { err = errors.Join(err, l.Close()) }()
	return s.run(ctx, l, ready)
}

// leaveProcessors has the switch use half of the machine's processors at most. The other ones are
// for guests and the way out, without which it has nothing to do. A processor that waits beside the
// one that forwards a frame costs more than it gives: Go wakes it for each batch, to look for more
// work (BenchmarkUserNetwork). GOMAXPROCS in the environment takes precedence.
func leaveProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
}

// plug has the agent make the network, and adds its interface to the switch.
func (s *supervisor) plug(ctx context.Context) error {
	files, wide, err := s.make(ctx, s.Network)
	if err != nil {
		return fmt.Errorf("network %s: %w", s.Network.Name, err)
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // the switch has its own copies
		}
	}()
	return s.sw.AddPort(control.Port{
		Name: Gateway, Kind: control.Tap, Device: s.Network.Name, Link: true, Verified: wide,
	}, files...)
}

// make has the agent make a network, with the sockets of forwards that it does not have yet. The
// caller closes the files of the switch's port, which come the first time. wide says of what the
// port is capable.
func (s *supervisor) make(ctx context.Context, n *config.Network) (port []*os.File, wide bool, err error) {
	forwards, err := forwardsOf(n)
	if err != nil {
		return nil, false, err
	}
	var sockets []*os.File
	defer func() { fdpass.CloseAll(sockets) }()
	keys := map[string]bool{}
	for _, f := range forwards {
		keys[f.Key] = true
		if s.keys[f.Key] {
			continue
		}
		l, err := listenOn(f.Key)
		if err != nil {
			return nil, false, err
		}
		sockets = append(sockets, l)
	}
	r, port, err := s.agent.ask(ctx, order{Make: &spec{
		Name: n.Name, Text: string(n.Format()), State: s.State, Resolv: s.Resolv,
		Names: namesDir(s.State, n.Name), Forwards: forwards,
	}}, sockets...)
	if err == nil {
		s.keys = keys
	}
	return port, r.Wide, err
}

// run serves clients of the switch and of the network until one of its parts ends.
func (s *supervisor) run(ctx context.Context, l *swserver.Listener, ready func(string)) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	door, err := listen(filepath.Join(filepath.Dir(l.Path()), socketName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, door.close()) }()
	wayEnded := make(chan error, 1)
	go func() { wayEnded <- s.keepWay(ctx) }()
	defer func() {
		cancel(nil)
		err = errors.Join(err, <-wayEnded)
	}()
	if err := s.change(ctx, s.Network); err != nil {
		return fmt.Errorf("network %s: %w", s.Network.Name, err)
	}
	switchEnded := make(chan error, 1)
	go func() { switchEnded <- s.sw.Serve(ctx, l) }()
	doorEnded := make(chan error, 1)
	go func() { doorEnded <- door.serve(ctx, s, func() { cancel(nil) }) }()
	defer func() {
		cancel(nil)
		door.stop()
		err = errors.Join(err, <-doorEnded)
	}()
	named := make(chan struct{})
	go func() {
		s.keepGuests(ctx)
		close(named)
	}()
	defer func() {
		cancel(nil)
		<-named
	}()
	gone := make(chan struct{})
	go awaitGone(ctx, l.Path(), gone)
	ready(l.Path())
	select {
	case err = <-switchEnded: // also by vmnet switch stop
		return err
	case <-gone:
		err = fmt.Errorf("network %s: %s has gone, as at the end of a session: nobody can reach the network "+
			"(loginctl enable-linger keeps it)", s.Network.Name, l.Path())
	case <-s.agent.process.Done():
		err = fmt.Errorf("network %s: its namespace's process has ended: %w", s.Network.Name, s.agent.process.Failure())
	case <-ctx.Done():
	}
	cancel(nil)
	return errors.Join(err, <-switchEnded)
}

// awaitGone closes gone when no client can find the socket any more.
func awaitGone(ctx context.Context, path string, gone chan<- struct{}) {
	tick := time.NewTicker(wayPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				close(gone)
				return
			}
		}
	}
}

// A turn is a network that pasta is to serve from now on.
type turn struct {
	n    *config.Network
	done chan error
}

// change has the running network become what n says.
func (s *supervisor) change(ctx context.Context, n *config.Network) error {
	c := &turn{n, make(chan error, 1)}
	select {
	case s.work <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// keepWay makes the changes that clients want, and keeps pasta running, which it starts again when
// it has ended, and when the host has got an IP version that it did not have. It returns when ctx
// ends, and then pasta has ended.
func (s *supervisor) keepWay(ctx context.Context) (err error) {
	defer func() {
		if p := s.now.pasta(); p != nil {
			err = errors.Join(err, child.Stop(p))
		}
	}()
	timer := time.NewTimer(wayPoll)
	defer timer.Stop()
	delay := firstDelay
	for {
		var ended <-chan struct{}
		if p := s.now.pasta(); p != nil {
			ended = p.Done()
		}
		select {
		case <-ctx.Done():
			return nil
		case c := <-s.work:
			c.done <- s.carryOut(ctx, c.n)
			delay = firstDelay
		case <-ended:
			s.lost()
			timer.Reset(0)
			continue
		case <-timer.C:
			if s.now.network() != nil {
				if err := s.startWay(ctx, s.now.network(), false); err != nil {
					s.now.failed(err)
					delay = min(2*delay, lastDelay)
					timer.Reset(delay)
					continue
				}
				delay = firstDelay
			}
		}
		timer.Reset(wayPoll)
	}
}

// lost notes that pasta has ended by itself.
func (s *supervisor) lost() {
	err := s.now.pasta().Failure()
	s.now.set(nil, way{}, nil)
	s.now.failed(err)
	s.now.restarted()
	s.Notice(err.Error())
}

// carryOut makes the network as n says. After an error it is as it was.
func (s *supervisor) carryOut(ctx context.Context, n *config.Network) error {
	before := s.now.network()
	if err := Check(n); err != nil {
		return err
	}
	_, _, err := s.make(ctx, n)
	if err == nil {
		err = s.startWay(ctx, n, true)
	}
	if err != nil && before != nil {
		_, _, backErr := s.make(ctx, before)
		return errors.Join(err, backErr, s.startWay(ctx, before, true))
	}
	if err == nil {
		s.now.made(n)
	}
	return err
}

// startWay starts pasta, unless it runs with the arguments that it should have. Without force it
// keeps running if the host has lost an IP version, which may come back.
func (s *supervisor) startWay(ctx context.Context, n *config.Network, force bool) error {
	w, err := hostWay()
	if err != nil {
		return err
	}
	if !n.NAT {
		w = way{}
	}
	running, has, args := s.now.way()
	if running && !force {
		w.ip4, w.ip6 = w.ip4 || has.ip4, w.ip6 || has.ip6
	}
	want := pastaArgs(w)
	if same(running, args, w.any(), want) {
		return nil
	}
	if p := s.now.pasta(); p != nil {
		s.now.set(nil, way{}, nil)
		if err := child.Stop(p); err != nil {
			return err
		}
	}
	if !w.any() {
		return nil
	}
	program, err := tool.Find(pastaProgram, "passt")
	if err != nil {
		return err
	}
	p, err := startPasta(program, want, s.agent.process.PID())
	if err != nil {
		return err
	}
	if err := s.up(ctx, p, w); err != nil {
		return errors.Join(err, child.Stop(p))
	}
	s.now.set(p, w, want)
	return nil
}

// up waits until pasta has configured its interface.
func (s *supervisor) up(ctx context.Context, p *child.Process, w way) error {
	for end := time.Now().Add(startTime); ; {
		r, _, err := s.agent.ask(ctx, order{})
		if err != nil {
			return err
		}
		if (r.IP4 || !w.ip4) && (r.IP6 || !w.ip6) {
			return nil
		}
		select {
		case <-p.Done():
			return pastaFailure(p)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not configure its interface within %v", pastaProgram, startTime)
		}
	}
}
