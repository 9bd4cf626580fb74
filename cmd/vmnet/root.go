package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/bridge"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/console"
	"vmnet/internal/cli/version"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/userdirs"
	"vmnet/libvirt"
	"vmnet/step"
	"vmnet/tapmgr"
)

// app is one run of the program.
type app struct {
	out, err io.Writer
	args     []string // the command line
	netns    string   // --netns
	libvirt  string   // --libvirt
	started  bool     // the command line was valid, and its verb has begun
	json     bool     // -o json
	colours  bool     // stdout shows colours
	journal  bool     // stderr is systemd's journal
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmnet",
		Short: "Give running QEMU guests their NICs",
		Long: `vmnet gives running QEMU guests NICs, on a Linux bridge, on a userspace switch or
directly on an interface of the host (macvtap, ipvtap), shows the NICs that it made, and takes
them away again. Guests that libvirt manages are recognised automatically. vmnet keeps no
files: it reads the current state from the kernel and from QEMU each time.

Results go to stdout, everything else to stderr. With -o json the result is JSON, and each line on
stderr is an object: with a key "note" or "progress", or at the end with "error", "exit_status" and,
if undoing the failed command failed as well, "also".

Exit status: 0 for success, 1 for a failure or a difference found, 2 for wrong usage.`,
		Example: `  vmnet bridge create br0 --address 10.0.0.1/24
  vmnet attach --vm P2 --bridge br0
  vmnet attach --vm P2 --nic net1 --macvtap eth0
  vmnet list
  vmnet detach --vm P2 --nic net0

  # A switch that needs no privilege
  vmnet switch run sw0 &
  vmnet attach --vm P2 --switch sw0

  # A libvirt guest, also for its next starts
  vmnet hook install
  vmnet attach --vm web --bridge br0 --persistent`,
		Version:       versionText(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	group(root)
	root.Flags().Bool("version", false, "print the version") // our own flag, since cobra's would take -v
	root.SetVersionTemplate("{{.Version}}\n")
	explain(root, a.out)
	root.SetHelpCommand(a.helpCommand())
	root.SetFlagErrorFunc(a.flagError)
	root.PersistentFlags().StringVar(&a.netns, "netns", "",
		"network namespace of bridges and taps: a `NAME` of ip-netns(8), or a path with a slash (default the current one)")
	root.PersistentFlags().StringVar(&a.libvirt, "libvirt", os.Getenv("LIBVIRT_DEFAULT_URI"),
		"`URI` or socket of the libvirt that manages guests: qemu:///system, qemu:///session "+
			"(default $LIBVIRT_DEFAULT_URI, else your own libvirt for your guests and the system's for others)")
	root.PersistentFlags().Lookup("libvirt").DefValue = ""
	root.AddCommand(
		a.attachCommand(), a.applyCommand(), a.macCommand(), a.detachCommand(), a.setCommand(),
		a.prepareCommand(), a.commitCommand(), a.abortCommand(), a.tapCommand(),
		a.listCommand(), a.showCommand(), a.mapCommand(), a.metricsCommand(), a.captureCommand(),
		a.monitorCommand(), a.topCommand(), a.whyCommand(), a.whyBusyCommand(),
		a.checkCommand(),
		a.reconcileCommand(), a.watchCommand(), a.networkCommand(), a.forwardCommand(), a.netnsCommand(),
		a.bridgeCommand(),
		a.switchCommand(), a.lowerCommand(), a.hookCommand(), a.policyCommand(), a.doctorCommand(), a.versionCommand(),
	)
	addGroups(root)
	strict(root)
	complete(root, "netns", netnsNames)
	complete(root, "libvirt", cobra.FixedCompletions([]cobra.Completion{libvirt.System, libvirt.Session}, noFiles))
	return root
}

// verb wraps the function of a command. An error before it is wrong usage.
func (a *app) verb(do func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return do(cmd, args)
	}
}

func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Explain a command",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion,
			cobra.ShellCompDirective,
		) {
			var names []cobra.Completion
			if of, _, err := cmd.Root().Find(args); err == nil {
				for _, c := range of.Commands() {
					if c.IsAvailableCommand() {
						names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			of, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("there is no command %q", strings.Join(args, " "))
			}
			of.InitDefaultHelpFlag()
			return of.Help()
		},
	}
}

// shells adds cobra's command completion, for the shells of Linux users.
func (a *app) shells(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	cmd, _, err := root.Find([]string{"completion"})
	if err != nil {
		return
	}
	cmd.Short = "Print the script by which a shell completes commands"
	group(cmd)
	for _, c := range cmd.Commands() {
		if c.Name() == "powershell" {
			cmd.RemoveCommand(c)
		}
	}
}

// run is the whole program; the result is its exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{
		out: stdout, err: stderr, args: args, journal: isJournal(stderr), json: asksJSON(args),
		colours: hasColours(stdout),
	}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	a.shells(root)
	if completes(args) {
		plainUsages(root)
	}
	cmd, err := root.ExecuteContextC(ctx)
	return a.report(cmd, err)
}

var errInterrupted = errors.New("interrupted")

// untilSignal returns a context that the first SIGINT, SIGTERM or SIGHUP cancels, so that the verb
// undoes its steps; a detach keeps its mark. The second signal ends the process at once.
func untilSignal(parent context.Context) context.Context {
	h := &hangUps{c: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancelCause(context.WithValue(parent, hangUpsKey{}, h))
	h.end = func() { cancel(errInterrupted) }
	signals := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // nohup(1) ignores SIGHUP
			signal.Notify(signals, s)
		}
	}
	go func() {
		for h.took(<-signals) {
		}
		signal.Stop(signals)
		h.end()
	}()
	return ctx
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of vmnet",
		Args:  noArgs(),
		RunE: a.verb(func(*cobra.Command, []string) error {
			return a.result(version.Get(), "%s", versionText())
		}),
	}
	outputFlag(cmd)
	return cmd
}

func versionText() string { return version.Text("vmnet") }

// withManager calls f with a Manager for --netns.
func (a *app) withManager(f func(*tapmgr.Manager) error) error {
	return tapmgr.In(a.netns, func(m *tapmgr.Manager) error {
		m.Progress = a.progress()
		m.AskSwitches, m.Switches = true, a.runningSwitches()
		m.LeaseStates = userdirs.Leases(os.Getenv)
		m.UseHelper(helperPath())
		m.Libvirt = a.libvirt
		m.MayShare = mayShare
		m.AskLibvirt()
		return f(m)
	})
}

// withBridges calls f with the bridges of --netns.
func (a *app) withBridges(f func(*bridge.Host) error) error {
	h, err := bridge.Open(a.netns)
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

// withNetlink calls f with a netlink socket in --netns.
func (a *app) withNetlink(f func(*rtnl.Conn) error) error {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// runningSwitches returns the control sockets of the switches that this user could reach.
func (a *app) runningSwitches() []string {
	paths, err := control.Running()
	if err != nil {
		a.note(fmt.Sprintf("the switches were not asked: %v", err))
	}
	return paths
}

// withTimeout bounds ctx by d. The cause names the flag that changes d.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("timed out after %v (--timeout allows more)", d))
}

// stepFlags says how the steps of a verb are run.
type stepFlags struct {
	dryRun, verbose bool
	planned         bool // a dry run has printed its steps
	// plans collects the plans of several networks, which are printed as one JSON document; nil
	// prints each at once.
	plans *[]*networkPlan
}

func (s *stepFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.dryRun, "dry-run", false, "print every step in order, and change nothing")
	cmd.Flags().BoolVarP(&s.verbose, "verbose", "v", false, "log every step with the time it took to stderr")
}

// apply sets m.Run to what the flags ask for.
func (s *stepFlags) apply(a *app, m *tapmgr.Manager, json bool) {
	m.Run = s.runner(a, json)
}

// runner returns how the flags ask to run steps; nil for step.Run.
func (s *stepFlags) runner(a *app, json bool) step.Runner {
	switch {
	case s.dryRun:
		return func(_ context.Context, steps []step.Step) error {
			s.planned = true
			return a.printSteps(steps, json)
		}
	case s.verbose:
		log := a.logger(logFormat(json))
		return func(ctx context.Context, steps []step.Step) error { return runLogged(ctx, log, steps) }
	}
	return nil
}

// logFormat returns the format of a log beside a result that is text or JSON.
func logFormat(json bool) string {
	if json {
		return "json"
	}
	return "text"
}

func (a *app) printSteps(steps []step.Step, json bool) error {
	if json {
		return a.printJSON(planSteps(steps))
	}
	for i, s := range steps {
		if err := a.print("%2d. %s: %s\n", i+1, s.Name, console.Clean(s.Text)); err != nil {
			return err
		}
	}
	return nil
}

// planStep is a step as JSON.
type planStep struct {
	Step int    `json:"step"`
	Name string `json:"name"`
	Text string `json:"text"`
}

func planSteps(steps []step.Step) []planStep {
	plans := []planStep{}
	for i, s := range steps {
		plans = append(plans, planStep{i + 1, s.Name, s.Text})
	}
	return plans
}

// runLogged runs steps and logs each step and each undo.
func runLogged(ctx context.Context, log *slog.Logger, steps []step.Step) error {
	timed := func(ctx context.Context, what string, s step.Step, do func(context.Context) error) error {
		start := time.Now()
		err := do(ctx)
		attrs := []any{"name", s.Name, "took", time.Since(start).Round(time.Microsecond), "text", s.Text}
		if err != nil {
			attrs = append(attrs, "error", err)
		}
		log.Info(what, attrs...)
		return err
	}
	logged := make([]step.Step, len(steps))
	for i, s := range steps {
		logged[i] = s
		if s.Undo != nil {
			logged[i].Undo = func(ctx context.Context) error { return timed(ctx, "undo", s, s.Undo) }
		}
	}
	return step.Run(ctx, logged, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
		return timed(ctx, "step", s, do)
	})
}

// helperPath returns the path of qemu-netup, which does what this process lacks the privilege for.
// It returns the empty string if this process has CAP_NET_ADMIN, or if there is no helper: the
// first step that needs the privilege then fails.
func helperPath() string {
	if may, err := cap.GetProc().GetFlag(cap.Effective, cap.NET_ADMIN); err != nil || may {
		return ""
	}
	m, err := machine()
	if err != nil {
		return ""
	}
	path, _ := m.FindHelper()
	return path
}
