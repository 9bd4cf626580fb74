package main

import (
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/netmap"
	"vmnet/internal/nsport"
	"vmnet/tapmgr"
)

func (a *app) mapCommand() *cobra.Command {
	var svg, dot, html, all bool
	cmd := &cobra.Command{
		Use:   "map",
		Short: "Draw what is connected to what",
		Long: `Draw the networks of guests: bridges, userspace switches and parent devices, and what is
connected to each: uplinks, VLANs of the host, guests with their addresses, and network namespaces.
What vmnet has not made is grey, and has a ~; where no frames pass, the line is red and has a cross and
the reason. A place with more than 24 guests shows only those with a fault, and how many others
there are.

The map is a tree of text, in 80 columns or those of the terminal; or a drawing as SVG or for
Graphviz, or a page that shows and searches everything, and needs nothing else.`,
		Example: `  vmnet map
  vmnet map --svg > map.svg
  vmnet map --html > map.html
  vmnet map --dot | dot -Tpng > map.png
  vmnet map -o json`,
		Args: noArgs(),
	}
	f := cmd.Flags()
	f.BoolVar(&svg, "svg", false, "draw it as SVG")
	f.BoolVar(&dot, "dot", false, "write it for Graphviz's dot(1)")
	f.BoolVar(&html, "html", false, "write a page of HTML, which can be searched and needs nothing else")
	f.BoolVar(&all, "all", false, "show all guests in the text, however many there are")
	format := outputFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("svg", "dot", "html", "all", "output")
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		m, err := a.readMap(cmd.Context())
		switch {
		case err != nil:
			return err
		case svg:
			return a.print("%s", m.SVG())
		case dot:
			return a.print("%s", m.DOT())
		case html:
			return a.printMapPage(m)
		case *format == "json":
			return a.printJSON(m)
		}
		return a.print("%s", m.Text(terminalWidth(a.out), all, a.paintMap))
	})
	return cmd
}

// readMap reads what there is.
func (a *app) readMap(ctx context.Context) (*netmap.Map, error) {
	var in netmap.Input
	err := a.withManager(func(m *tapmgr.Manager) (err error) {
		in.NICs, err = m.Survey(ctx, "", tapmgr.Look{Addresses: true, Agents: agentPatience})
		return err
	})
	if err != nil {
		return nil, err
	}
	err = a.withNamespaces(func(m *nsport.Manager) error {
		var notices []string
		var err error
		in.Peers, notices, err = m.Links(ctx)
		a.notes(notices)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = a.withNetlink(func(c *rtnl.Conn) (err error) { in.Links, err = c.Links("", 0); return err })
	if err != nil {
		return nil, err
	}
	return netmap.Build(in), nil
}

func (a *app) printMapPage(m *netmap.Map) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	text, err := m.HTML(host, time.Now())
	if err != nil {
		return err
	}
	return a.print("%s", text)
}

func (a *app) paintMap(how, text string) string {
	switch how {
	case "broken":
		return a.painted(red, text)
	case "foreign":
		return a.painted(grey, text)
	}
	return text
}
