package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nsport"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Versions are those of the specification. The results of older ones have no interfaces.
var Versions = version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

// Codes of errors: that of the specification for STATUS, and those of this plugin.
const (
	codeUnavailable = 50
	codeExists      = 100
	codeDiffers     = 101
)

// limit bounds a command. A runtime that waits longer would not know why.
const limit = 2 * time.Minute

// Commands returns the commands, which end early when ctx does.
func Commands(ctx context.Context) skel.CNIFuncs {
	command := func(do func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error {
			ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
			defer cancel()
			return coded(do(ctx, args))
		}
	}
	return skel.CNIFuncs{
		Add: command(add), Del: command(del), Check: command(check), GC: command(collect), Status: command(status),
	}
}

// coded gives an error the code by which the runtime decides what to do.
func coded(err error) error {
	var has *types.Error
	code := types.ErrInternal
	switch {
	case err == nil:
		return nil
	case errors.Is(err, nic.ErrInvalid):
		code = types.ErrInvalidNetworkConfig
	case errors.Is(err, nic.ErrExist):
		code = codeExists
	case errors.Is(err, context.DeadlineExceeded):
		code = types.ErrTryAgainLater
	case errors.As(err, &has):
		if err == error(has) {
			return err
		}
		code = has.Code
	}
	return types.NewError(code, strings.ReplaceAll(err.Error(), "\n", "; "), "")
}

// with calls f with what attaches namespaces to the plugin's own.
func with(n *network, f func(*nsport.Manager) error) error {
	m, err := nsport.Open("")
	if err != nil {
		return err
	}
	defer m.Close()
	m.Networks = n.ConfigDir
	return f(m)
}

// find returns the attachment of that id; nil if there is none, or only an interrupted one.
func find(ctx context.Context, m *nsport.Manager, id string) (*nsport.Info, error) {
	all, _, err := m.List(ctx)
	i := slices.IndexFunc(all, func(i nsport.Info) bool { return i.ID == id && i.State != nic.Attaching })
	if err != nil || i < 0 {
		return nil, err
	}
	return &all[i], nil
}

func notes(all []string) {
	for _, note := range all {
		console.Say(os.Stderr, "vmnet-cni", "note: "+note)
	}
}

// add serves ADD. If it fails, nothing is left, and the address is free again.
func add(ctx context.Context, args *skel.CmdArgs) error {
	n, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if n.PrevResult != nil {
		return invalid("prevResult: vmnet-cni makes an interface, so it is the first plugin of a list")
	}
	s, err := n.spec(args)
	if err != nil {
		return err
	}
	return with(n, func(m *nsport.Manager) error {
		// What hands out addresses knows the container by its id: an undo would free the address of
		// the attachment that is there.
		if old, err := find(ctx, m, s.ID); err != nil || old != nil {
			if err == nil {
				err = types.NewError(codeExists, fmt.Sprintf("container %s has an interface %s on network %s already",
					args.ContainerID, args.IfName, n.Name), "")
			}
			return err
		}
		dns, release, err := n.allocate(ctx, args, &s)
		if err != nil {
			return err
		}
		done, err := m.Attach(ctx, s)
		notes(done.Notices)
		if err != nil {
			return errors.Join(err, release())
		}
		return types.PrintResult(result(done.Info, args.Netns, dns), n.CNIVersion)
	})
}

// allocate asks the plugin for addresses, if the configuration names one, and completes s. release
// gives them back. The configuration's own name servers take precedence.
func (n *network) allocate(ctx context.Context, args *skel.CmdArgs, s *nsport.Spec) (
	dns types.DNS, release func() error, err error,
) {
	by, err := n.ipam()
	if err != nil || by == "" {
		return n.DNS, func() error { return nil }, err
	}
	release = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), step.UndoTimeout)
		defer cancel()
		return delegated(by, "DEL", invoke.DelegateDel(ctx, by, args.StdinData, nil))
	}
	given, err := invoke.DelegateAdd(ctx, by, args.StdinData, nil)
	if err != nil {
		return dns, nil, delegated(by, "ADD", err)
	}
	r, err := current.NewResultFromResult(given)
	if err == nil && len(r.IPs) == 0 {
		err = errors.New("it gave no address")
	}
	if err == nil {
		err = assign(s, r, "")
	}
	if err != nil {
		return dns, nil, errors.Join(fmt.Errorf("ipam plugin %s: %w", by, err), release())
	}
	if dns = r.DNS; !n.DNS.IsEmpty() {
		dns = n.DNS
	}
	return dns, release, nil
}

// delegated says which plugin has failed, and keeps the code of its error.
func delegated(by, command string, err error) error {
	var has *types.Error
	if errors.As(err, &has) {
		return types.NewError(has.Code, fmt.Sprintf("ipam plugin %s: %s: %s", by, command, has.Msg), has.Details)
	}
	if err != nil {
		return fmt.Errorf("ipam plugin %s: %s: %w (is it in CNI_PATH?)", by, command, err)
	}
	return nil
}

// del serves DEL. The address is given back once nobody has it.
func del(ctx context.Context, args *skel.CmdArgs) error {
	n, err := parseLoosely(args.StdinData)
	if err != nil {
		return err
	}
	err = with(n, func(m *nsport.Manager) error {
		return detach(ctx, m, n.id(args.ContainerID, args.IfName), args.Netns)
	})
	if err != nil {
		return err
	}
	by, err := n.ipam()
	if err != nil || by == "" {
		return err
	}
	return delegated(by, "DEL", invoke.DelegateDel(ctx, by, args.StdinData, nil))
}

// detach removes an attachment, which may have gone, and its namespace too.
func detach(ctx context.Context, m *nsport.Manager, id, path string) error {
	done, err := m.Detach(ctx, nsport.Which{ID: id})
	if err != nil || len(done.Removed) > 0 || path == "" {
		return err
	}
	// Its record may be one that the users of the namespace can write, which counts only there.
	ns, err := netns.Open(path)
	if err != nil {
		return nil // such a namespace has no interface
	}
	_ = ns.Close()
	_, err = m.Detach(ctx, nsport.Which{ID: id, Netns: path})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// check serves CHECK: the same attach again would change nothing.
func check(ctx context.Context, args *skel.CmdArgs) error {
	n, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	s, err := n.spec(args)
	if err != nil {
		return err
	}
	r, err := n.previous()
	if err != nil {
		return err
	}
	s.Addresses = nil
	if err := assign(&s, r, args.IfName); err != nil {
		return err
	}
	err = with(n, func(m *nsport.Manager) error { return compare(ctx, m, s) })
	if err != nil {
		return err
	}
	by, err := n.ipam()
	if err != nil || by == "" {
		return err
	}
	return delegated(by, "CHECK", invoke.DelegateCheck(ctx, by, args.StdinData, nil))
}

// compare returns an error that says what differs from s.
func compare(ctx context.Context, m *nsport.Manager, s nsport.Spec) error {
	var missing []string
	m.DryRun, m.Run = true, func(_ context.Context, steps []step.Step) error {
		for _, s := range steps {
			missing = append(missing, s.Text)
		}
		return nil
	}
	_, err := m.Attach(ctx, s)
	switch {
	case errors.Is(err, nic.ErrExist):
		return types.NewError(codeDiffers, err.Error(), "")
	case err == nil && len(missing) > 0:
		return types.NewError(codeDiffers, "what would mend it: "+strings.Join(missing, "; "), "")
	}
	return err
}

// collect serves GC: it removes the network's attachments that the runtime does not name.
func collect(ctx context.Context, args *skel.CmdArgs) error {
	n, err := parseLoosely(args.StdinData)
	if err != nil {
		return err
	}
	valid := map[string]bool{}
	for _, a := range n.Valid {
		valid[n.id(a.ContainerID, a.IfName)] = true
	}
	err = with(n, func(m *nsport.Manager) error {
		all, _, err := m.List(ctx)
		errs := []error{err}
		for _, i := range all {
			if strings.HasPrefix(i.ID, prefixOf(n.Name)) && !valid[i.ID] && !i.Claimed {
				errs = append(errs, detach(ctx, m, i.ID, ""))
			}
		}
		return errors.Join(errs...)
	})
	by, ipamErr := n.ipam()
	if ipamErr == nil && by != "" && err == nil {
		ipamErr = delegated(by, "GC", invoke.DelegateGC(ctx, by, args.StdinData, nil))
	}
	return errors.Join(err, ipamErr)
}

// status serves STATUS: whether an ADD could succeed.
func status(ctx context.Context, args *skel.CmdArgs) error {
	n, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	args.Netns, args.IfName = "any", "eth0" // it is about none
	s, err := n.spec(args)
	if err != nil {
		return err
	}
	if err := s.Validate(); err != nil {
		return err
	}
	err = with(n, func(m *nsport.Manager) error { return m.CheckPlace(s) })
	if err != nil {
		return types.NewError(codeUnavailable, err.Error(), "")
	}
	by, err := n.ipam()
	if err != nil || by == "" {
		return err
	}
	return delegated(by, "STATUS", invoke.DelegateStatus(ctx, by, args.StdinData, nil))
}
