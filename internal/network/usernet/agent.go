package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/tool"
)

// agentName is the name under which the program runs as an agent (argv[0]).
const agentName = "vmnet-network-agent"

// agentFD is the agent's end of the socket to the supervisor.
const agentFD = 3

// order is what the supervisor sends to the agent.
type order struct {
	Make  *spec `json:"make,omitempty"`  // nil: say what there is
	Rules bool  `json:"rules,omitempty"` // also of the rules, which takes a run of nft
	// Reload has dnsmasq read the guests' reservations again.
	Reload bool `json:"reload,omitempty"`
}

// spec is a network that an agent makes.
type spec struct {
	Name   string `json:"name"`
	Text   string `json:"text"`   // of its file
	State  string `json:"state"`  // the directory of the server's files
	Resolv string `json:"resolv"` // the path of the host's resolv.conf
	Names  string `json:"names"`  // the directory of the guests' names

	Forwards []forward `json:"forwards"` // the sockets of new ones come with the order
}

// report is the agent's answer. The files of the switch's port come with the first one.
type report struct {
	Error    string `json:"error,omitempty"`
	Wide     bool   `json:"wide"` // see canBeWide
	IP4      bool   `json:"ip4"`  // the namespace has an address on pasta's interface
	IP6      bool   `json:"ip6"`
	Rules    bool   `json:"rules"`    // they are as they were made
	Serving  bool   `json:"serving"`  // dnsmasq runs, or should not
	Restarts int    `json:"restarts"` // of dnsmasq
	Failure  string `json:"failure,omitempty"`
}

// maxOrder bounds an order in bytes: a network's file has at most 64 KiB.
const maxOrder = 256 << 10

// IsAgent reports whether this process was started as an agent; main then calls Agent.
func IsAgent() bool { return len(os.Args) > 0 && os.Args[0] == agentName }

// Agent is an agent's whole program; the result is its exit status. It is the first process of its
// pid namespace, and all that it has started ends with it.
func Agent() int {
	// The supervisor alone ends it, also after a Ctrl-C in a terminal.
	catch(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := agent(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// catch has this process do nothing on signals, without its children inheriting that they are
// ignored: pasta takes an ignored SIGPIPE for a failure of signal(2).
func catch(signals ...os.Signal) { signal.Notify(make(chan os.Signal, 1), signals...) }

func agent() error {
	sock, err := fdpass.Inherited(agentFD)
	if err != nil {
		return err
	}
	a := &inside{}
	if a.nl, err = rtnl.Open(nil); err != nil {
		return err
	}
	for {
		data, files, err := sock.Receive(maxOrder)
		if errors.Is(err, io.EOF) {
			return nil // the supervisor has ended
		}
		if err != nil {
			return err
		}
		var o order
		var port []*os.File
		if err = json.Unmarshal(data, &o); err == nil && o.Make != nil {
			port, err = a.make(o.Make, files)
		} else {
			fdpass.CloseAll(files)
		}
		if err == nil && o.Reload {
			err = a.server.reload()
		}
		a.widen()
		answer, err := json.Marshal(a.report(o.Rules, err))
		if err == nil {
			err = sock.Send(answer, port...)
		}
		fdpass.CloseAll(port)
		if err != nil {
			return err
		}
	}
}

// inside is what an agent has made.
type inside struct {
	// The agent's own namespace. It cannot be opened: /proc is of another pid namespace.
	ns     *netns.NS
	nl     *rtnl.Conn
	link   int            // the network's interface; 0 before it was made
	wide   bool           // see canBeWide
	routed []netip.Prefix // in packetTable
	rules  string         // as nft lists them
	table  string
	server keeper
	relays relays
}

// make makes the network of s, whatever it was before. It takes ownership of the sockets of new
// forwards. The first time it returns the files of the switch's port.
func (a *inside) make(s *spec, sockets []*os.File) (port []*os.File, err error) {
	defer func() {
		if err != nil {
			fdpass.CloseAll(append(port, sockets...))
			port = nil
		}
	}()
	n, err := config.Parse(s.Name, s.Name, []byte(s.Text))
	if err != nil {
		return nil, err
	}
	ctx := context.Background() // the supervisor kills an agent that takes too long
	if a.link == 0 {
		if port, err = a.begin(n); err != nil {
			return nil, err
		}
	}
	if err = a.addresses(n); err == nil {
		err = a.setMTU(n)
	}
	if err == nil {
		err = a.rule(ctx, n)
	}
	if err == nil {
		err = a.serve(ctx, n, s)
	}
	if err == nil {
		err = a.relays.set(s.Forwards, sockets)
	}
	return port, err
}

// begin makes what a network has all its life. The caller closes the files.
func (a *inside) begin(n *config.Network) (port []*os.File, err error) {
	lo, err := a.nl.Link("lo")
	if err == nil {
		err = a.nl.Set(lo.Index, rtnl.Up(true))
	}
	if err != nil {
		return nil, fmt.Errorf("bring lo up: %w", err)
	}
	set := forwarding.Settings{NS: a.ns}
	for _, name := range []string{forwarding.IP4, forwarding.IP6} {
		_, ok, err := set.Read(name)
		if err == nil && ok { // a kernel may lack IPv6
			err = set.Write(name, "1")
		}
		if err != nil {
			return nil, fmt.Errorf("%w (a container must let its users write /proc/sys of their network "+
				"namespaces)", err)
		}
	}
	tap, err := tun.Create(a.ns, n.Name, false)
	if err != nil {
		return nil, err
	}
	port = slices.Clone(tap.Queues())
	follow, err := rtnl.FollowFile(a.ns)
	if err == nil {
		port = append(port, follow)
		var l *rtnl.Link
		if l, err = a.nl.Link(n.Name); err == nil {
			a.link, a.wide = l.Index, a.canBeWide()
			err = a.nl.Set(l.Index, rtnl.Alias(alias.Prefix+"network="+alias.Escape(n.Name)),
				rtnl.TxQLen(burst), rtnl.Up(true))
		}
	}
	if err != nil {
		fdpass.CloseAll(port)
		return nil, err
	}
	return port, nil
}

// burst is the length in frames of the queues between guests and pasta. pasta sends all that a
// guest's TCP window has room for at once, and each lost frame costs it the rest of the window: it
// knows no selective acknowledgment, neither as the sender nor as the receiver.
const burst = 8192

// widen gives pasta's interface a queue for bursts, once it is there.
func (a *inside) widen() {
	if l, err := a.nl.Link(wan); err == nil && l.TxQLen < burst {
		_ = a.nl.Set(l.Index, rtnl.TxQLen(burst)) // slower without
	}
}

// addresses gives the interface those of the router and of the server, and no others.
func (a *inside) addresses(n *config.Network) error {
	want := append(n.Addresses(), n.Server())
	if n.IPv6.IsValid() {
		want = append(want, n.Server6())
	}
	has, err := a.nl.Addrs(a.link)
	if err != nil {
		return err
	}
	differ := func(p []netip.Prefix, from []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(p), func(x netip.Prefix) bool { return slices.Contains(from, x) })
	}
	for _, p := range differ(has, want) {
		if err := a.nl.DeleteAddr(a.link, p); err != nil {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	for _, p := range differ(want, has) {
		if err := a.nl.AddAddr(a.link, p); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// rule replaces the rules.
func (a *inside) rule(ctx context.Context, n *config.Network) error {
	text, err := ruleset.Text(ruled(n))
	if err != nil {
		return err
	}
	a.table = ruleset.Table(n.Name)
	if err := nft.Apply(ctx, a.ns, ruleset.Delete(n.Name, []string{ruleset.Inet})+text); err != nil {
		return err
	}
	a.rules, err = nft.ListTable(ctx, a.ns, ruleset.Inet, a.table)
	return err
}

// serve starts dnsmasq, or replaces one that has other arguments.
func (a *inside) serve(ctx context.Context, n *config.Network, s *spec) error {
	if !n.DHCP {
		return a.server.keep(ctx, nil)
	}
	program, err := tool.Find(dhcp.Program, "dnsmasq-base")
	if err != nil {
		return err
	}
	args := dhcp.UserArgs(n, dhcp.FilesOf(s.State, n.Name), s.Resolv, s.Names)
	return a.server.keep(ctx, append([]string{program}, args...))
}

// report says what there is, after an error or nil.
func (a *inside) report(rules bool, err error) report {
	r := report{Rules: true, Wide: a.wide}
	if err != nil {
		r.Error = err.Error()
		return r
	}
	if l, err := a.nl.Link(wan); err == nil {
		addrs, _ := a.nl.Addrs(l.Index)
		r.IP4 = slices.Contains(addrs, inside4)
		r.IP6 = slices.Contains(addrs, inside6)
	}
	if rules && a.table != "" {
		now, err := nft.ListTable(context.Background(), a.ns, ruleset.Inet, a.table)
		r.Rules = err == nil && now == a.rules
	}
	r.Serving, r.Restarts, r.Failure = a.server.state()
	return r
}
