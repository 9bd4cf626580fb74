package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/network"
	"vmnet/internal/network/config"
)

func (a *app) forwardCommand() *cobra.Command {
	var o networkFlags
	cmd := &cobra.Command{
		Use:   "forward",
		Short: "Lead connections to ports of the host on to guests of a network",
		Long: `Lead connections to ports of the host on to guests of a network. They come from other
machines, from the host itself and from guests, and are to any address of the host but those of its
loopback interface. A forward is stored in the network's file.`,
		Example: `  vmnet forward add lab tcp:8080 web:80
  vmnet forward add lab udp:5000-5010 10.66.0.12 --listen 192.0.2.1
  vmnet forward remove lab tcp:8080
  vmnet forward list lab`,
	}
	group(cmd)
	o.add(cmd)
	cmd.AddCommand(a.forwardAddCommand(&o), a.forwardRemoveCommand(&o), a.forwardListCommand(&o))
	return cmd
}

// forwardChanged is the result of add and remove.
type forwardChanged struct {
	Network string              `json:"network"`
	Forward network.ForwardInfo `json:"forward"`
	Changed bool                `json:"changed"`
}

func forwardText(f network.ForwardInfo) string {
	text := f.From + " to " + f.To
	if f.Listen != "" {
		text = f.Listen + " " + text
	}
	if f.IP != "" {
		text += fmt.Sprintf(" (%s, MAC %s)", f.IP, f.MAC)
	}
	return text
}

func infoOf(f config.Forward) network.ForwardInfo {
	return network.Describe(&config.Network{Forwards: []config.Forward{f}}).Forwards[0]
}

// errSame ends a change of a network that is as wanted already.
var errSame = errors.New("unchanged")

func (a *app) forwardAddCommand(o *networkFlags) *cobra.Command {
	var listen string
	var force bool
	cmd := &cobra.Command{
		Use:   "add NETWORK PROTOCOL:PORT[-LAST] GUEST[:PORT]",
		Short: "Add a forward",
		Long: `Add a forward: from ports of the host to a guest, by the name of one of the network's
hosts, by that of a guest that was attached with --network, or by an address. A forward to a guest is
bound to its NIC: as long as the forward is there, the network's server gives the guest's MAC the
address that it has now, and no other. The ports of a range stay the same. The same command again
changes nothing.

A forward of a port on which a program of the host listens takes its connections from it, which a
note says. That of SSH is refused without --force.`,
		Example: `  vmnet forward add lab tcp:8080 web:80
  vmnet forward add lab udp:5000-5010 P2
  vmnet forward add lab tcp:8080 [fd66:1:2:3::11]:80`,
		Args:              threeArgs,
		ValidArgsFunction: a.networkNames(o),
	}
	cmd.Flags().StringVar(&listen, "listen", "", "the `ADDRESS` of the host to which connections are (default any)")
	cmd.Flags().BoolVar(&force, "force", false, "also take the port of the host's SSH server")
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		f, err := config.ParseForward(args[1], args[2], listen)
		if err != nil {
			return usagef("%w", err)
		}
		o.json = *format == "json"
		return a.changeForwards(
			cmd.Context(),
			o,
			args[0],
			&f,
			"added",
			func(m *network.Manager, n *config.Network) error {
				if err := m.Bind(cmd.Context(), n, &f); err != nil {
					return err
				}
				if slices.Contains(n.Forwards, f) {
					return errSame
				}
				n.Forwards = append(n.Forwards, f)
				return a.tellHidden(m, f, force)
			},
		)
	})
	return cmd
}

// tellHidden notes the ports that a new forward takes from programs of the host. Without force,
// that of SSH is an error.
func (a *app) tellHidden(m *network.Manager, f config.Forward, force bool) error {
	ports, err := m.Hidden(f)
	if err != nil {
		return err
	}
	for _, port := range ports {
		if f.Protocol == "tcp" && !force && slices.Contains(sshPorts(), port) {
			return fmt.Errorf("forward %s: the host's SSH server listens on port %d: nobody could log in any more "+
				"(use another port, --listen with another address of the host, or --force)", f.From(), port)
		}
		a.note(fmt.Sprintf("forward %s: a program of the host listens on port %d: from now on its connections go to %s",
			f.From(), port, f.Guest))
	}
	return nil
}

// sshPorts are the usual one, and that by which this user is logged in (ssh(1), SSH_CONNECTION).
func sshPorts() []uint16 {
	ports := []uint16{22}
	if f := strings.Fields(os.Getenv("SSH_CONNECTION")); len(f) == 4 {
		if port, err := strconv.ParseUint(f[3], 10, 16); err == nil {
			ports = append(ports, uint16(port))
		}
	}
	return ports
}

// threeArgs are those of forward add.
func threeArgs(cmd *cobra.Command, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("%s takes a network, ports and a guest, such as lab tcp:8080 web:80, got %s",
			cmd.CommandPath(), count(len(args), "argument"))
	}
	return nil
}

func (a *app) forwardRemoveCommand(o *networkFlags) *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:     "remove NETWORK PROTOCOL:PORT[-LAST]",
		Short:   "Remove a forward",
		Example: "  vmnet forward remove lab tcp:8080",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%s takes a network and ports, such as lab tcp:8080, got %s",
					cmd.CommandPath(), count(len(args), "argument"))
			}
			return nil
		},
		ValidArgsFunction: a.forwardNames(o),
	}
	cmd.Flags().StringVar(&listen, "listen", "", "only the forward from this `ADDRESS` of the host")
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if _, _, _, err := config.ParsePorts(args[1]); err != nil {
			return usagef("%w", err)
		}
		o.json = *format == "json"
		var removed config.Forward
		return a.changeForwards(
			cmd.Context(),
			o,
			args[0],
			&removed,
			"removed",
			func(_ *network.Manager, n *config.Network) error {
				i := slices.IndexFunc(n.Forwards, func(f config.Forward) bool {
					return f.From() == args[1] && (listen == "" || infoOf(f).Listen == listen)
				})
				if i < 0 {
					return fmt.Errorf("network %s has no forward %s (vmnet forward list %[1]s)", n.Name, args[1])
				}
				removed = n.Forwards[i]
				n.Forwards = slices.Delete(n.Forwards, i, i+1)
				return nil
			},
		)
	})
	return cmd
}

// changeForwards changes the file of a network, and makes the network so.
func (a *app) changeForwards(ctx context.Context, o *networkFlags, name string, f *config.Forward, done string,
	change func(*network.Manager, *config.Network) error,
) error {
	return a.withNetworks(ctx, o, func(m *network.Manager) error {
		err := m.Replace(ctx, name, func(n *config.Network) error { return change(m, n) })
		changed := !errors.Is(err, errSame)
		if err != nil && changed {
			return err
		}
		if !changed {
			done = "unchanged"
		}
		return a.result(forwardChanged{name, infoOf(*f), changed}, "network %s: %s: %s",
			name, done, forwardText(infoOf(*f)))
	})
}

func (a *app) forwardListCommand(o *networkFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "list [NETWORK]",
		Short:             "List the forwards",
		Example:           "  vmnet forward list lab",
		Args:              atMostOne("the name of a network"),
		ValidArgsFunction: a.networkNames(o),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		if err := a.networkPlaces(o); err != nil {
			return err
		}
		networks, err := a.networksNamed(config.Dir(o.config), args)
		if err != nil {
			return err
		}
		type row struct {
			Network string `json:"network"`
			network.ForwardInfo
		}
		all := []row{}
		rows := [][]string{{"NETWORK", "LISTEN", "FROM", "TO"}}
		for _, n := range networks {
			for _, f := range network.Describe(n).Forwards {
				all = append(all, row{n.Name, f})
				rows = append(rows, []string{n.Name, f.Listen, f.From, f.To})
			}
		}
		if *format == "json" {
			return a.printJSON(all)
		}
		return a.table(rows, nil)
	})
	return cmd
}

// networksNamed reads the files of the networks named, or of all. A note says which cannot be read.
func (a *app) networksNamed(dir config.Dir, names []string) ([]*config.Network, error) {
	if len(names) > 0 {
		n, err := dir.Read(names[0])
		return []*config.Network{n}, err
	}
	networks, broken, err := dir.All()
	for _, err := range broken {
		a.note(err.Error())
	}
	return networks, err
}

// forwardNames completes the network, then its forwards.
func (a *app) forwardNames(o *networkFlags) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return a.networkNames(o)(cmd, args, text)
		}
		n, err := config.Dir(o.config).Read(args[0])
		if err != nil {
			return nil, noFiles
		}
		var names []cobra.Completion
		for _, f := range n.Forwards {
			names = append(names, cobra.CompletionWithDesc(f.From(), f.To()))
		}
		return names, noFiles
	}
}
