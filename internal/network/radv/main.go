package radv

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Args returns the arguments for Main.
func (p Params) Args() []string {
	return []string{
		"--prefix=" + p.Prefix.String(), "--lifetime=" + p.Lifetime.String(), "--dns=" + p.DNS.String(),
		"--domain=" + p.Domain,
	}
}

// parse is the reverse of Args.
func parse(args []string) (p Params, err error) {
	f := flag.NewFlagSet("advertise", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Func("prefix", "", func(s string) (err error) { p.Prefix, err = netip.ParsePrefix(s); return err })
	f.DurationVar(&p.Lifetime, "lifetime", 0, "")
	f.Func("dns", "", func(s string) (err error) { p.DNS, err = netip.ParseAddr(s); return err })
	f.StringVar(&p.Domain, "domain", "", "")
	err = f.Parse(args)
	if err == nil && (f.NArg() > 0 || !p.Prefix.IsValid() || !p.Prefix.Addr().Is6() || !p.DNS.Is6() ||
		p.Lifetime < 0 || p.Lifetime > maxLifetime) {
		err = errors.New("these are not what Args returns")
	}
	return p, err
}

// maxLifetime is what the 16 bits of an advertisement can say (RFC 4861, 4.2).
const maxLifetime = 65535 * time.Second

// firstFile is the descriptor of the first of the files that Main inherits (os/exec, ExtraFiles).
const firstFile = 3

// Main is the program that sends: it has the arguments of Args, and inherits what Open opens. It
// ends after SIGTERM.
func Main(args []string) error {
	p, err := parse(args)
	if err != nil {
		return fmt.Errorf("router advertisements: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return Send(ctx, p, firstFile, firstFile+1)
}
