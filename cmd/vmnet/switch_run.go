package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/control/server"
	"vmnet/internal/access/privilege"
	"vmnet/internal/cli/fdroom"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/sandbox"
	"vmnet/internal/sdnotify"
)

// runVerb is the command line of switch run.
type runVerb struct {
	name      string
	ports     []wantedPort
	ageing    time.Duration
	addresses int
	user      string
	filter    bool
	sandbox   sandbox.Mode
	takenOver bool // from another process
	poll      polling
	fdStore   bool
	store     *sdnotify.Manager // with fdStore
	fastPath  string            // auto or off
}

func (a *app) switchRunCommand() *cobra.Command {
	var o runVerb
	cmd := &cobra.Command{
		Use:   "run NAME",
		Short: "Run a switch, until it is stopped",
		Long: `Run a learning switch in the foreground, until it is asked to end. It opens its
ports, drops all privileges, and listens on a socket on which vmnet attach --switch and vmnet switch
add-port add further ports. NAME is the switch's name or, with a slash, the path of its socket.

A tap that does not exist is created, and disappears with the switch; it remains a port when it is
moved to another network namespace. Frames that arrive on a packet port's device reach the switch
only, and not the host's own stack.

` + portHelp,
		Example: `  vmnet switch run sw0
  vmnet switch run sw0 --tap tap0 --tap tap1,queues=2 --user vmnet-switch
  vmnet switch run sw0 --tap tap0,vlan=5 --packet eth1,trunk=2-5,native=1 --ageing 60s`,
		Args:              oneArg("a name for the switch"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	devicePorts(cmd, a, &o.ports)
	durationFlag(f, &o.ageing, "ageing", 300*time.Second, time.Second,
		"how long the switch remembers an address that sends nothing")
	o.addresses = 16384
	nicflags.Number(f, &o.addresses, "addresses", "N",
		"size of the FDB in addresses, 1 to 2097152; when it is full, those that were silent longest are forgotten")
	outputFlag(cmd)
	f.StringVar(&o.user, "user", "",
		"the `USER` or UID:GID that it runs as once its ports are open (default the caller)")
	f.BoolVar(&o.filter, "vlan-filtering", false, "separate VLANs from the start, and not only once a port has a VLAN")
	sandboxFlag(cmd, &o.sandbox)
	f.BoolVar(&o.fdStore, "fd-store", false,
		"have systemd keep the ports' files, with which the switch goes on if it is killed (FileDescriptorStoreMax=)")
	o.poll.flags(cmd)
	fastPathFlag(cmd, &o.fastPath)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.name = args[0]
		if o.addresses < 1 || o.addresses > 1<<21 {
			return usagef("--addresses %d: want 1 to %d", o.addresses, 1<<21)
		}
		if err := o.poll.check(); err != nil {
			return err
		}
		var err error
		if o.sandbox, err = sandboxMode(cmd, o.sandbox); err != nil {
			return err
		}
		return a.runSwitch(cmd.Context(), &o)
	})
	return cmd
}

func (a *app) runSwitch(ctx context.Context, o *runVerb) error {
	to, err := runsAs(o.user)
	if err != nil {
		return err
	}
	if o.fdStore {
		if o.store, err = sdnotify.Dial(); err != nil {
			return usagef("--fd-store: %w", err)
		}
		defer o.store.Close()
	}
	place, err := server.Prepare(o.name, to.UID, to.GID)
	if errors.Is(err, server.ErrRunning) {
		return fmt.Errorf("%w (vmnet switch stop %s ends it)", err, o.name)
	}
	if err != nil {
		return err
	}
	sw, s := a.newSwitch(o, o.name)
	opened, err := a.begin(ctx, o, s)
	var l *server.Listener
	if err == nil {
		l, err = listenAs(place, to)
	}
	if err == nil {
		err = a.serveSwitch(ctx, o, s, l, opened)
	}
	if l == nil {
		place.Forget()
		if o.takenOver { // the next start goes on with the ports
			s.LeaveStored()
		}
	}
	return errors.Join(err, closeSwitch(sw, s, l))
}

// newSwitch makes a switch without ports, with that name for clients. closeSwitch closes it.
func (a *app) newSwitch(o *runVerb, name string) (*vswitch.Switch, *server.Server) {
	roomForOthers()
	sw := vswitch.New(vswitch.Config{
		Ageing: o.ageing, Addresses: o.addresses, VLANFiltering: o.filter, Poll: o.poll.time, PollCPUs: o.poll.cpus,
		NoFastPath: o.fastPath == control.FastPathOff,
		Notice:     func(text string) { a.noteOf(o, text) },
	})
	return sw, server.New(sw, control.Info{
		Name: name, Version: versionText(), Ageing: int(o.ageing.Seconds()), Addresses: o.addresses,
		Poll: float64(o.poll.time) / float64(time.Microsecond), PollCPUs: o.poll.cpus,
		FastPath: o.fastPath,
	})
}

// noteOf prints a note about a switch.
func (a *app) noteOf(o *runVerb, text string) { a.note("switch " + o.name + ": " + text) }

// keep has the store keep the ports, if there is one.
func (a *app) keep(o *runVerb, s *server.Server) {
	if o.store != nil {
		s.KeepIn(o.store, sdnotify.StoreRoom(), func(text string) { a.noteOf(o, text) })
	}
}

// closeSwitch closes all that serveSwitch has left. l may be nil.
func closeSwitch(sw *vswitch.Switch, s *server.Server, l *server.Listener) error {
	err := errors.Join(sw.Close(), leave(s, l))
	s.Close()
	return err
}

// leave closes the listener, whose socket stays if another process has taken it over.
func leave(s *server.Server, l *server.Listener) error {
	if l == nil {
		return nil
	}
	if _, taken := s.HandedTo(); taken {
		return l.Abandon()
	}
	return l.Close()
}

// leastProcs is how many goroutines may run at a time at least.
const leastProcs = 8

// roomForOthers lets more goroutines run at a time than there are CPUs, so that the kernel
// schedules them. A receiver that always finds frames keeps its place for 10 ms; with 8 receivers
// on 2 CPUs a client of the control socket waited for 80 ms, and with this for 10 ms. GOMAXPROCS in
// the environment takes precedence.
func roomForOthers() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(leastProcs, 2*runtime.NumCPU()))
	}
}

// runsAs returns the user that the switch runs as; an empty name is the caller.
func runsAs(name string) (privilege.Caller, error) {
	to, err := privilege.Who()
	if err != nil || name == "" {
		return to, err
	}
	if uid, gid, ok := strings.Cut(name, ":"); ok {
		u, uidErr := strconv.ParseUint(uid, 10, 31)
		g, gidErr := strconv.ParseUint(gid, 10, 31)
		if uidErr != nil || gidErr != nil {
			return to, usagef("--user %s: want a user's name, or UID:GID in numbers", name)
		}
		return privilege.Caller{UID: int(u), GID: int(g)}, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return to, usagef("--user %s: %w (UID:GID in numbers works without /etc/passwd)", name, err)
	}
	to.Groups = nil
	to.UID, err = strconv.Atoi(u.Uid)
	if err == nil {
		to.GID, err = strconv.Atoi(u.Gid)
	}
	return to, err
}

// plugIn opens the ports and passes copies of their files to the switch.
func (a *app) plugIn(ctx context.Context, s *server.Server, o *runVerb) ([]openPort, error) {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	opened, err := openPorts(ctx, ns, o.ports, o.fastPath == control.FastPathAuto)
	if err != nil {
		return nil, err
	}
	for _, p := range opened {
		if err == nil {
			err = s.AddPort(p.Port, p.files...)
		}
	}
	if err != nil {
		return nil, errors.Join(err, discardPorts(opened))
	}
	return opened, closePorts(opened)
}

// listenAs drops all privileges, becomes the user to, and then creates the socket.
func listenAs(place *server.Place, to privilege.Caller) (*server.Listener, error) {
	if err := privilege.GiveUp(to); err != nil {
		return nil, err
	}
	return place.Listen()
}

// serveSwitch confines the process, and serves the switch until it ends or is handed over.
func (a *app) serveSwitch(ctx context.Context, o *runVerb, s *server.Server, l *server.Listener,
	opened []openPort,
) error {
	s.Confined(a.confine(o, l.Path(), s.Ports()))
	s.HandsOver(l, func(pid int) { a.tellSystemd(fmt.Sprintf("MAINPID=%d", pid)) })
	status := fmt.Sprintf("switch %s: runs with %s, socket %s", o.name, count(s.Info().Ports, "port"), l.Path())
	if err := a.printRunning(o.name, l.Path(), status, opened); err != nil {
		if !o.takenOver {
			return err
		}
		a.note(err.Error()) // its guests need it all the same
	}
	a.tellAlone(s.Ports(), s.Info().VLANFiltering)
	a.tellLimit()
	a.tellSystemd("READY=1\nSTATUS=" + status)
	err := s.Serve(ctx, l)
	state, text := "ended", "ended"
	if pid, taken := s.HandedTo(); taken {
		state, text = "handed-over", fmt.Sprintf("handed over to process %d", pid)
	} else {
		a.tellSystemd("STOPPING=1")
	}
	return errors.Join(err, a.result(switchRuns{Switch: o.name, State: state}, "switch %s: %s", o.name, text))
}

// tellSystemd reports a state. A switch goes on without systemd.
func (a *app) tellSystemd(state string) {
	if err := sdnotify.Notify(state); err != nil {
		a.note(err.Error())
	}
}

// switchRuns is what run prints when it listens and when it ends.
type switchRuns struct {
	Switch string        `json:"switch"`
	State  string        `json:"state"` // "running", "ended", "handed-over"
	Socket string        `json:"socket,omitempty"`
	Ports  []pluggedPort `json:"ports,omitempty"`
}

func (a *app) printRunning(name, socket, status string, opened []openPort) error {
	if err := a.result(switchRuns{name, "running", socket, describePorts(opened)}, "%s", status); err != nil || a.json {
		return err
	}
	for _, p := range opened {
		if err := a.line("  %s: %s %s, %s", p.Name, p.Kind, p.Where(), p.how); err != nil {
			return err
		}
	}
	return nil
}

// fewFiles is a limit of open files that is too low for a few hundred ports. Go's runtime has
// already raised the soft limit to the hard one.
const fewFiles = 2048

// filesOfPort is how many files a port of most kinds needs.
const filesOfPort = 18

func (a *app) tellLimit() {
	if limit, err := fdroom.Limit(); err == nil && limit < fewFiles {
		a.note(fmt.Sprintf("the switch may open %d files, which is enough for about %d ports (raise ulimit -Hn)",
			limit, max(0, int(limit)-100)/filesOfPort))
	}
}
