package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/version"
	"vmnet/libvirt"
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
directly on a network card (macvtap, ipvtap), shows the NICs that it made, and takes them away
again. Guests that libvirt manages are recognised automatically. vmnet keeps no files: it reads the
current state from the kernel and from QEMU each time.

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
		"`URI` or socket of the libvirt that manages guests: qemu:///system, qemu:///session (default $LIBVIRT_DEFAULT_URI, else your own libvirt for your guests and the system's for others)")
	root.PersistentFlags().Lookup("libvirt").DefValue = ""
	root.AddCommand(
		a.attachCommand(), a.detachCommand(), a.listCommand(), a.showCommand(), a.checkCommand(),
		a.reconcileCommand(), a.watchCommand(), a.networkCommand(), a.forwardCommand(), a.bridgeCommand(),
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
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // nohup(1) ignores SIGHUP
			signal.Notify(signals, s)
		}
	}
	go func() {
		<-signals
		signal.Stop(signals)
		cancel(errInterrupted)
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
