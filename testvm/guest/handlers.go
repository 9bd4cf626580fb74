package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/testvm/agent"
	"vmnet/testvm/traffic"
)

type none struct{}

func handlers() map[string]agent.Handler {
	s := &services{running: map[agent.Service]*traffic.Server{}}
	return map[string]agent.Handler{
		agent.MethodHello: agent.Method(func(context.Context, none) (agent.Info, error) { return hello() }),
		agent.MethodExec:  agent.Method(run),
		agent.MethodLinks: agent.Method(func(context.Context, none) ([]agent.Link, error) { return links() }),
		agent.MethodLinkSet: agent.Method(func(_ context.Context, c agent.LinkSet) (none, error) {
			return none{}, setLink(c)
		}),
		agent.MethodAddr:    agent.Method(changeAddr),
		agent.MethodRoute:   agent.Method(addRoute),
		agent.MethodWaitNIC: agent.Method(waitNIC),
		agent.MethodPing:    agent.Method(traffic.SendPing),
		agent.MethodServe:   agent.Method(s.start),
		agent.MethodUnserve: agent.Method(s.stop),
		agent.MethodTCPSend: agent.Method(func(ctx context.Context, p agent.Send) (traffic.TCPResult, error) {
			return traffic.SendTCP(ctx, p.To, p.Bytes)
		}),
		agent.MethodUDPSend: agent.Method(func(ctx context.Context, p agent.Send) (traffic.UDPResult, error) {
			return traffic.SendUDP(ctx, p.To, p.Count, p.Size)
		}),
		agent.MethodPowerOff: agent.Method(func(context.Context, none) (none, error) {
			time.AfterFunc(50*time.Millisecond, powerOff) // after the reply
			return none{}, nil
		}),
	}
}

func hello() (agent.Info, error) {
	var name unix.Utsname
	var up unix.Timespec
	if err := errors.Join(unix.Uname(&name), unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)); err != nil {
		return agent.Info{}, err
	}
	return agent.Info{Kernel: unix.ByteSliceToString(name.Release[:]), Uptime: time.Duration(up.Nano())}, nil
}

// run runs a command; when ctx ends, its whole process group is killed.
func run(ctx context.Context, c agent.Command) (agent.Output, error) {
	if len(c.Argv) == 0 {
		return agent.Output{}, errors.New("no command given")
	}
	var stdout, stderr limited
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.Stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // for children that hold its output open
	err := cmd.Run()
	exit := new(exec.ExitError)
	switch {
	case ctx.Err() != nil:
		return agent.Output{}, fmt.Errorf("run %s: %w", c.Argv[0], context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return agent.Output{}, fmt.Errorf("run %s: no such program in the guest, whose tools are busybox's: install busybox-static on the host", c.Argv[0])
	case err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay):
		return agent.Output{}, fmt.Errorf("run %s: %w", c.Argv[0], err)
	}
	return agent.Output{Stdout: stdout.buf.String(), Stderr: stderr.buf.String(), Code: cmd.ProcessState.ExitCode()}, nil
}

// limited keeps the first agent.MaxOutput bytes.
type limited struct{ buf bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.buf.Write(p[:min(len(p), agent.MaxOutput-l.buf.Len())])
	return len(p), nil
}

// services are the running traffic servers, by protocol and address.
type services struct {
	mu      sync.Mutex
	running map[agent.Service]*traffic.Server
}

func (s *services) start(_ context.Context, p agent.Service) (agent.Service, error) {
	serve := traffic.ServeTCP
	switch p.Proto {
	case "tcp":
	case "udp":
		serve = traffic.ServeUDP
	default:
		return p, fmt.Errorf("unknown protocol %q (known: tcp, udp)", p.Proto)
	}
	server, err := serve(p.Addr)
	if err != nil {
		return p, err
	}
	p.Addr = server.Addr
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[p] = server
	return p, nil
}

func (s *services) stop(_ context.Context, p agent.Service) (none, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	server, ok := s.running[p]
	if !ok {
		return none{}, fmt.Errorf("nothing serves %s at %s", p.Proto, p.Addr)
	}
	server.Close()
	delete(s.running, p)
	return none{}, nil
}
