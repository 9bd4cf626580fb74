package why

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/sniff"
)

// neighbours is the place of what a guest believes of others.
const neighbours = "the guest's neighbours"

// mostSniffed bounds how many frames of a guest are looked at.
const mostSniffed = 4096

// listen begins to collect what the guest sends, of its own accord or as an answer; it returns nil
// where the host does not see that, or the guest is on no bridge of the kernel.
func (l *live) listen() (*sniff.Reader, io.Closer) {
	n, br := l.NIC, l.bridgeLink()
	if n.Link == nil || n.Netns != "" || !n.IsTap() || br == nil || br.Bridge == nil {
		return nil, nil
	}
	socket, err := sniff.Open(l.ns, n.Link.Index)
	if err != nil {
		return nil, nil // which the probes say
	}
	r, err := sniff.NewReader(socket)
	if err != nil {
		_ = socket.Close()
		return nil, nil
	}
	return r, socket
}

// astray adds to which addresses the guest has sent that nothing on its bridge has: such as that
// which the bridge had before a port left it.
func (l *live) astray(r *sniff.Reader) {
	br := l.bridgeLink()
	fdb, err := l.nl.FDB(br.Index, 0)
	if r == nil || err != nil || r.SetDeadline(time.Now().Add(time.Millisecond)) != nil {
		return
	}
	count := map[string]int{}
	for range mostSniffed {
		f, err := r.Next()
		if err != nil {
			break
		}
		const source = 6
		if !f.Sent && len(f.Data) >= 2*source && f.Data[0]&1 == 0 &&
			bytes.Equal(f.Data[source:2*source], l.NIC.mac()) && !l.known(f.Data[:source], fdb) {
			count[net.HardwareAddr(f.Data[:source]).String()]++
		}
	}
	for mac, n := range count {
		s := Step{
			Where: neighbours, Verdict: Stops,
			Why: fmt.Sprintf("it has sent %s to %s, which nothing on %s has: the bridge itself is %s now",
				frames(uint64(n)), mac, br.Name, br.MAC),
			Cure: fmt.Sprintf("in the guest: ip neigh flush all; ip link set %s address %s keeps it from taking "+
				"that of a port", br.Name, br.MAC),
		}
		if len(l.uplinks(br)) > 0 {
			s.Verdict = Unknown // it may be beyond them
		}
		l.note(s)
	}
}

// known reports whether the bridge, what is on it, or an entry of its FDB has an address.
func (l *live) known(mac net.HardwareAddr, fdb []rtnl.FDBEntry) bool {
	br := l.bridgeLink()
	return slices.ContainsFunc(l.Links, func(link *rtnl.Link) bool {
		return bytes.Equal(link.MAC, mac) && (link == br || link.Master == br.Index || link.Lower == br.Index)
	}) ||
		slices.ContainsFunc(fdb, func(e rtnl.FDBEntry) bool { return bytes.Equal(e.MAC, mac) })
}
