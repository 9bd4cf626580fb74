package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
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
		agent.MethodResume: agent.Method(func(_ context.Context, r agent.Resume) (none, error) {
			return none{}, resume(r)
		}),
		agent.MethodExec:   agent.Method(run),
		agent.MethodStream: agent.Streaming(stream),
		agent.MethodLinks:  agent.Method(func(context.Context, none) ([]agent.Link, error) { return links() }),
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

func resume(r agent.Resume) error {
	now := unix.NsecToTimeval(r.Now.UnixNano())
	err := errors.Join(unix.Sethostname([]byte(r.Hostname)), unix.Settimeofday(&now), reseed(r.Seed))
	if r.Rescan { // their drivers have probed them when this write returns
		err = errors.Join(err, os.WriteFile("/sys/bus/pci/rescan", []byte("1"), 0))
	}
	return err
}

// reseedRNG is RNDRESEEDCRNG in include/uapi/linux/random.h.
const reseedRNG = 0x5207

// reseed makes the kernel's random numbers depend on a seed from now on.
func reseed(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(seed); err != nil {
		return err
	}
	_, err = unix.IoctlRetInt(int(f.Fd()), reseedRNG)
	if err == unix.ENODATA {
		return nil // there are none yet: the first ones will depend on it
	}
	return os.NewSyscallError("RNDRESEEDCRNG", err)
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
