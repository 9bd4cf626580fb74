package usernet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/server"
	"vmnet/step"
)

// Place has the networks of the user that runs this process. It is a network.Elsewhere.
type Place struct {
	State  string // the directory of leases and logs
	Resolv string // the host's resolv.conf
	// Command is the program and its arguments that run a network, without the network's name.
	Command []string
}

var _ network.Elsewhere = Place{}

// mendBy is the cure of a difference.
func mendBy(name string) string { return "vmnet network apply " + name }

// Look implements network.Elsewhere.
func (p Place) Look(ctx context.Context, n *config.Network) (seen network.Seen, err error) {
	st, err := statusOf(ctx, n.Name)
	add := func(what, want, found string) {
		seen.Differences = append(seen.Differences, network.Difference{
			Network: n.Name, What: what, Want: want, Found: found, Mend: mendBy(n.Name),
		})
	}
	if errors.Is(err, errNotRunning) {
		add("network", "running", "")
		return seen, nil
	}
	if err != nil {
		return seen, fmt.Errorf("network %s: %w", n.Name, err)
	}
	ports, err := portsOf(ctx, st.Socket)
	if err != nil {
		return seen, err
	}
	seen.Ports, seen.Guests = namesOf(ports), guestsOf(n, ports)
	seen.Running, seen.Way, seen.Log = true, st.Way, logFile(p.State, n.Name)
	if st.WayFailure != "" {
		seen.Way += " (" + st.WayFailure + ")"
	}
	for _, c := range []struct {
		name string
		pid  int
	}{{"supervisor", st.Supervisor}, {"agent", st.Agent}, {dhcp.Program, st.Dnsmasq}, {pastaProgram, st.Pasta}} {
		if c.pid != 0 {
			seen.Processes = append(seen.Processes, network.Process{Name: c.name, PID: c.pid})
		}
	}
	if st.Text != string(n.Format()) {
		add("network", "made as the file says", "made otherwise")
	}
	if !st.Rules {
		add("rules", "table "+ruleset.Table(n.Name), "other rules in it")
	}
	if !st.Serving {
		add("server", "running", st.Failure)
	}
	w, err := hostWay()
	if st.Pasta == 0 && w.any() && n.NAT {
		add(pastaProgram, "running", st.WayFailure)
	}
	return seen, err
}

// portsOf returns the ports of a network's switch, without that of its namespace.
func portsOf(ctx context.Context, socket string) ([]control.Port, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, stateTime, errHangs)
	defer cancel()
	c, err := control.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ports, err := c.Ports(ctx)
	return slices.DeleteFunc(ports, func(p control.Port) bool { return p.Name == Gateway }), err
}

func namesOf(ports []control.Port) (names []string) {
	for _, p := range ports {
		names = append(names, p.Name)
	}
	return names
}

// Steps implements network.Elsewhere.
func (p Place) Steps(ctx context.Context, n *config.Network) ([]step.Step, error) {
	if err := Check(n); err != nil {
		return nil, err
	}
	st, err := statusOf(ctx, n.Name)
	if errors.Is(err, errNotRunning) {
		if err := CheckMachine(); err != nil {
			return nil, fmt.Errorf("network %s: %w", n.Name, err)
		}
		return []step.Step{p.startStep(n)}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("network %s: %w (vmnet network delete %[1]s ends it)", n.Name, err)
	}
	seen, err := p.Look(ctx, n)
	if err != nil || len(seen.Differences) == 0 {
		return nil, err
	}
	before, err := config.Parse(n.Name, n.Name, []byte(st.Text))
	if err != nil {
		return nil, err
	}
	return []step.Step{{
		Name: "network", Text: "have process " + strconv.Itoa(st.Supervisor) + " make it so",
		Do:   func(ctx context.Context) error { return remake(ctx, n) },
		Undo: func(ctx context.Context) error { return remake(ctx, before) },
	}}, nil
}

func (p Place) startStep(n *config.Network) step.Step {
	argv := append(slices.Clone(p.Command), n.Name)
	return step.Step{
		Name: "network", Text: "in the background: " + strings.Join(argv, " "),
		Do: func(ctx context.Context) error {
			err := server.Spawn(ctx, argv)
			if err == nil {
				return nil
			}
			// That of a client which was killed while it started may have come first.
			if st, statusErr := statusOf(ctx, n.Name); statusErr != nil {
				return err
			} else if st.Text == string(n.Format()) {
				return nil
			}
			return remake(ctx, n)
		},
		Undo: func(ctx context.Context) error { return stop(ctx, n.Name) },
	}
}

// EndSteps implements network.Elsewhere.
func (p Place) EndSteps(ctx context.Context, name string, force bool) ([]step.Step, error) {
	path, socket, err := doorOf(name)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path); err == nil && !force {
		ports, err := portsOf(ctx, socket)
		if err != nil && !errors.Is(err, control.ErrNotRunning) {
			return nil, fmt.Errorf("network %s: %w (--force deletes it nevertheless)", name, err)
		}
		if len(ports) > 0 {
			return nil, fmt.Errorf("network %s: guests are on it: %s (detach them first, or use --force)",
				name, strings.Join(namesOf(ports), ", "))
		}
	}
	left := []string{
		path, logFile(p.State, name), oldLog(logFile(p.State, name)), namesDir(p.State, name),
		reservationFile(p.State, name), unfinished(reservationFile(p.State, name)),
	}
	if !slices.ContainsFunc(left, func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}) {
		return nil, nil
	}
	return []step.Step{{
		Name: "network", Text: "end the processes of " + path,
		Do: func(ctx context.Context) error {
			return errors.Join(stop(ctx, name), remove(left[1:]))
		},
	}}, nil
}

// Names implements network.Elsewhere.
func (p Place) Names() (names []string, err error) {
	paths, err := control.Running()
	for _, path := range paths {
		if _, err := os.Lstat(filepath.Join(filepath.Dir(path), socketName)); err == nil {
			if name := control.NameOf(path); !strings.Contains(name, "/") {
				names = append(names, name)
			}
		}
	}
	return names, err
}

// Programs implements network.Elsewhere.
func (p Place) Programs(n *config.Network) (rules string, programs []string, err error) {
	rules, err = ruleset.Text(ruled(n))
	programs = []string{}
	add := func(program string, args []string) {
		programs = append(programs, strings.Join(append([]string{program}, args...), " "))
	}
	if n.DHCP {
		add(dhcp.Program, dhcp.UserArgs(n, dhcp.FilesOf(p.State, n.Name), p.Resolv, namesDir(p.State, n.Name)))
	}
	w, wayErr := hostWay()
	if n.NAT {
		add(pastaProgram, pastaArgs(w))
	}
	return rules, programs, errors.Join(err, wayErr)
}

// Notices implements network.Elsewhere.
func (p Place) Notices(n *config.Network) (notices []string) {
	if w, err := hostWay(); err == nil && n.NAT && !w.any() {
		notices = append(notices, fmt.Sprintf("network %s: guests reach each other only: the host has no default "+
			"route (they reach the world once it has one)", n.Name))
	}
	if n.NAT && !mayPing() {
		notices = append(notices, fmt.Sprintf("network %s: guests cannot ping other networks: the host lets no "+
			"program of this user (as root: sysctl net.ipv4.ping_group_range='0 2147483647')", n.Name))
	}
	return append(notices, network.UserNotices(n, p.Resolv)...)
}

// mayPing reports whether the kernel lets this user's programs send ICMP echo requests (icmp(7)).
func mayPing() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
	if err != nil {
		return true
	}
	var first, last int
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
		return true
	}
	groups, _ := os.Getgroups()
	return slices.ContainsFunc(append(groups, os.Getegid()), func(gid int) bool { return first <= gid && gid <= last })
}

func remove(paths []string) error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
