package usernet

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"vmnet/internal/network/child"
	"vmnet/internal/network/server"
)

// A keeper keeps dnsmasq running.
type keeper struct {
	mu       sync.Mutex
	argv     []string
	process  *child.Process // nil if none runs
	restarts int
	failure  string // why it was started again the last time
}

// keep runs that program from now on; none if argv is nil. It returns once guests are answered.
func (k *keeper) keep(ctx context.Context, argv []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Equal(argv, k.argv) && (k.process != nil || argv == nil) {
		return nil
	}
	if p := k.process; p != nil {
		k.process = nil
		if err := child.Stop(p); err != nil {
			return err
		}
	}
	k.argv = argv
	if argv == nil {
		return nil
	}
	return k.start(ctx)
}

// reload has the program, if it runs, read its files again; one that starts does so by itself.
func (k *keeper) reload() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.process == nil {
		return nil
	}
	err := k.process.Signal(syscall.SIGHUP)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (k *keeper) start(ctx context.Context) error {
	cmd := exec.Command(k.argv[0], k.argv[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: server.Capabilities}
	p, err := child.Start(cmd, nil)
	if err != nil {
		return err
	}
	if err := server.Listening(ctx, p, "/proc/thread-self"); err != nil {
		return errors.Join(err, child.Stop(p))
	}
	k.process = p
	go k.watch(p)
	return nil
}

// watch starts the program again after it has ended, unless another one was wanted meanwhile.
func (k *keeper) watch(p *child.Process) {
	<-p.Done()
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		k.mu.Lock()
		if k.process != p {
			k.mu.Unlock()
			return
		}
		if k.failure = strings.TrimSpace(p.Failure().Error()); k.start(context.Background()) == nil {
			k.restarts++
			k.mu.Unlock()
			return
		}
		k.mu.Unlock()
		time.Sleep(delay)
	}
}

// Delays before a program that cannot be started is started again.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = 5 * time.Second
)

func (k *keeper) state() (serving bool, restarts int, failure string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	running := k.process != nil
	if running {
		select {
		case <-k.process.Done():
			running = false
		default:
		}
	}
	return running || k.argv == nil, k.restarts, k.failure
}
