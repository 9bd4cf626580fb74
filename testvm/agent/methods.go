package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"vmnet/testvm/traffic"
)

// WaitReady waits until the guest answers. It repeats the request, since a guest that is reset
// loses requests, and ever less often, since a guest that is slow must answer all of them.
func (g *Guest) WaitReady(ctx context.Context) (Info, error) {
	type answer struct {
		info Info
		err  error
	}
	answers, asked := make(chan answer), 0
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		for range asked - 1 {
			<-answers
		}
	}()
	for pause := time.Second; ; pause *= 2 {
		asked++
		go func() {
			var a answer
			a.err = g.call(ctx, MethodHello, nil, &a.info)
			answers <- a
		}()
		select {
		case a := <-answers:
			return a.info, a.err
		case <-time.After(pause):
		}
	}
}

// Resume makes a guest that begins in the state of another one differ from it: in its name, its
// random numbers, the time, and its devices.
func (g *Guest) Resume(ctx context.Context, r Resume) error {
	r.Seed = make([]byte, 32)
	_, _ = rand.Read(r.Seed)
	return g.call(ctx, MethodResume, r, nil)
}

// Run runs a command to its end and returns its outcome. A nonzero status is not an error.
func (g *Guest) Run(ctx context.Context, c Command) (Output, error) {
	var out Output
	err := g.call(ctx, MethodExec, c, &out)
	return out, err
}

// Exec runs a command and returns its standard output. A nonzero status is an error with the
// command's output.
func (g *Guest) Exec(ctx context.Context, argv ...string) (string, error) {
	out, err := g.Run(ctx, Command{Argv: argv})
	if err == nil && out.Code != 0 {
		err = fmt.Errorf("guest %s: %s: exit status %d: %s", g.name, strings.Join(argv, " "), out.Code,
			strings.TrimSpace(out.Stderr))
	}
	return out.Stdout, err
}

// Stream is Run with unbounded output, which it writes to stdout and stderr as it comes; nil
// discards it. While one of them blocks, so does every request to this guest.
func (g *Guest) Stream(ctx context.Context, c Command, stdout, stderr io.Writer) (code int, err error) {
	var broken error
	write := func(to io.Writer, content []byte) {
		if to != nil && len(content) > 0 {
			_, err := to.Write(content)
			broken = cmp.Or(broken, err)
		}
	}
	var out Output
	err = g.stream(ctx, MethodStream, c, func(raw json.RawMessage) {
		var part Part
		broken = cmp.Or(broken, json.Unmarshal(raw, &part))
		write(stdout, part.Stdout)
		write(stderr, part.Stderr)
	}, &out)
	if err == nil && broken != nil {
		err = fmt.Errorf("guest %s: pass on the output of %s: %w", g.name, c.Argv[0], broken)
	}
	return out.Code, err
}

// Links returns all network interfaces, including lo.
func (g *Guest) Links(ctx context.Context) ([]Link, error) {
	var links []Link
	err := g.call(ctx, MethodLinks, nil, &links)
	return links, err
}

// Up brings a link up.
func (g *Guest) Up(ctx context.Context, link string) error {
	up := true
	return g.call(ctx, MethodLinkSet, LinkSet{Link: link, Up: &up}, nil)
}

// Down takes a link down.
func (g *Guest) Down(ctx context.Context, link string) error {
	up := false
	return g.call(ctx, MethodLinkSet, LinkSet{Link: link, Up: &up}, nil)
}

// SetMTU sets a link's MTU, in bytes.
func (g *Guest) SetMTU(ctx context.Context, link string, mtu int) error {
	return g.call(ctx, MethodLinkSet, LinkSet{Link: link, MTU: mtu}, nil)
}

// SetMAC sets a link's hardware address.
func (g *Guest) SetMAC(ctx context.Context, link, mac string) error {
	return g.call(ctx, MethodLinkSet, LinkSet{Link: link, MAC: mac}, nil)
}

// AddAddr adds an address ("10.0.0.2/24", "fd00::2/64") to a link. It is usable at once, without
// duplicate address detection. AddAddr does not bring the link up.
func (g *Guest) AddAddr(ctx context.Context, link, cidr string) error {
	return g.call(ctx, MethodAddr, AddrChange{Link: link, Addr: cidr}, nil)
}

// DelAddr removes an address from a link.
func (g *Guest) DelAddr(ctx context.Context, link, cidr string) error {
	return g.call(ctx, MethodAddr, AddrChange{Link: link, Addr: cidr, Remove: true}, nil)
}

// AddRoute adds or replaces a route to "default" or a CIDR through a gateway.
func (g *Guest) AddRoute(ctx context.Context, to, via string) error {
	return g.call(ctx, MethodRoute, Route{To: to, Via: via}, nil)
}

// AddDefaultRouteOn adds or replaces the default route through a gateway that is on a link, though
// no route leads to it.
func (g *Guest) AddDefaultRouteOn(ctx context.Context, link, via string) error {
	return g.call(ctx, MethodRoute, Route{To: "default", Via: via, Link: link}, nil)
}

// WaitNIC waits until a NIC with this hardware address exists.
func (g *Guest) WaitNIC(ctx context.Context, mac string) (Link, error) {
	var link Link
	err := g.call(ctx, MethodWaitNIC, NICWait{MAC: mac}, &link)
	return link, err
}

// UseNIC waits until a NIC with this hardware address exists, adds an address with its prefix
// length ("10.0.0.2/24"), and brings it up.
func (g *Guest) UseNIC(ctx context.Context, mac, addr string) error {
	link, err := g.WaitNIC(ctx, mac)
	if err == nil {
		err = g.AddAddr(ctx, link.Name, addr)
	}
	if err == nil {
		err = g.Up(ctx, link.Name)
	}
	return err
}

// WaitNICGone waits until no NIC has this hardware address.
func (g *Guest) WaitNICGone(ctx context.Context, mac string) error {
	return g.call(ctx, MethodWaitNIC, NICWait{MAC: mac, Gone: true}, nil)
}

// Ping sends up to five echo requests, one per second, and returns the round-trip time of the first
// that is answered.
func (g *Guest) Ping(ctx context.Context, addr string) (time.Duration, error) {
	res, err := g.PingWith(ctx, traffic.Ping{Addr: addr, Count: 5, UntilFirst: true})
	return res.Min, err
}

// PingWith pings with all options. It returns an error if there is no reply at all.
func (g *Guest) PingWith(ctx context.Context, p traffic.Ping) (traffic.PingResult, error) {
	var res traffic.PingResult
	err := g.call(ctx, MethodPing, p, &res)
	return res, err
}

// TCPServe starts a server for TCPSend at "ip:port" (port 0: any) and returns its address. It runs
// until TCPUnserve or the end of the guest.
func (g *Guest) TCPServe(ctx context.Context, addr string) (string, error) {
	return g.serve(ctx, Service{"tcp", addr})
}

// UDPServe starts a server for UDPSend: it echoes every datagram.
func (g *Guest) UDPServe(ctx context.Context, addr string) (string, error) {
	return g.serve(ctx, Service{"udp", addr})
}

func (g *Guest) serve(ctx context.Context, s Service) (string, error) {
	err := g.call(ctx, MethodServe, s, &s)
	return s.Addr, err
}

// TCPUnserve ends the server whose address TCPServe returned.
func (g *Guest) TCPUnserve(ctx context.Context, addr string) error {
	return g.call(ctx, MethodUnserve, Service{"tcp", addr}, nil)
}

// UDPUnserve ends the server whose address UDPServe returned.
func (g *Guest) UDPUnserve(ctx context.Context, addr string) error {
	return g.call(ctx, MethodUnserve, Service{"udp", addr}, nil)
}

// TCPSend sends n pseudo-random bytes to a traffic server and checks that all of them arrived.
func (g *Guest) TCPSend(ctx context.Context, to string, n int64) (traffic.TCPResult, error) {
	var res traffic.TCPResult
	err := g.call(ctx, MethodTCPSend, Send{To: to, Bytes: n}, &res)
	return res, err
}

// UDPSend sends count datagrams of size bytes each, one after the other, to a traffic server, and
// checks each echo. It returns an error if there is no echo at all.
func (g *Guest) UDPSend(ctx context.Context, to string, count, size int) (traffic.UDPResult, error) {
	var res traffic.UDPResult
	err := g.call(ctx, MethodUDPSend, Send{To: to, Count: count, Size: size}, &res)
	return res, err
}

// PowerOff asks the guest to power off and returns before it has.
func (g *Guest) PowerOff(ctx context.Context) error {
	return g.call(ctx, MethodPowerOff, nil, nil)
}
