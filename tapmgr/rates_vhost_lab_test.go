package tapmgr_test

import (
	"testing"
	"time"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/netns"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/lab"
	"vmnet/testvm/traffic"
)

// labRates are low enough for a guest in a lab host, both of which are emulated.
var labRates = portrate.Config{Up: portrate.Limit{Bits: 1e6}, Down: portrate.Limit{Bits: 1e6}, Burst: 32 << 10}

// TestLabRatesWithVhost: what vhost-net moves has the rates of its NIC, too: not more passes.
func TestLabRatesWithVhost(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	g := h.booted(testvm.Config{})
	for _, spec := range []nic.Spec{g.spec("net0"), g.lowerSpec("net0", nic.Lower{})} {
		spec.Vhost = nic.VhostOn
		near, peer, addr := h.ns, hostAddr, guestAddr
		if spec.Lower != nil {
			near, peer, addr = h.far, farAddr, "10.8.0.2"
		}
		n := h.attach(spec)
		h.use(g, n, addr+"/24")
		v := vhostLine{h: h, g: g, near: near, peer: peer, addr: addr}
		v.passes(n.Type+" without rates", portrate.Config{})
		if _, err := h.set(g, func(s *nic.Spec) { s.Rates = labRates }); err != nil {
			h.Fatal(err)
		}
		h.limits("with vhost", g, labRates)
		v.passes(n.Type, labRates)
		h.detach(g, "net0")
		h.nothingLeft(g, "net0")
	}
}

// A vhostLine is a guest and its peer in a netns.
type vhostLine struct {
	h          *host
	g          *guest
	near       *netns.NS
	peer, addr string
}

// passes sends a stream each way, and demands that it is not faster than the rates; they are so low
// that it would be without them.
func (v vhostLine) passes(what string, rates portrate.Config) {
	v.h.Helper()
	const size = 384 << 10
	for _, up := range []bool{true, false} {
		start := time.Now() // the guest's clock counts instructions
		if err := v.send(up, size); err != nil {
			v.h.Fatalf("%s: %v", what, err)
		}
		took := time.Since(start)
		v.h.Logf("%s, up %v: %d bytes in %v", what, up, size, took)
		if rates.Up.Bits == 0 {
			continue
		}
		bits := float64(size-rates.Burst) * 8
		if least := time.Duration(bits / float64(rates.Up.Bits) * 1e9); took < least {
			v.h.Errorf("%s, up %v: %d bytes in %v, want at least %v", what, up, size, took, least)
		}
	}
}

func (v vhostLine) send(up bool, size int64) error {
	ctx := v.h.context(2 * time.Minute)
	if !up {
		served, err := v.g.Guest.TCPServe(ctx, v.addr+":0")
		if err == nil {
			err = v.near.Do(func() (err error) { _, err = traffic.SendTCP(ctx, served, size); return err })
		}
		return err
	}
	var sink *traffic.Server
	err := v.near.Do(func() (err error) { sink, err = traffic.ServeTCP(v.peer + ":0"); return err })
	if err == nil {
		defer sink.Close()
		_, err = v.g.Guest.TCPSend(ctx, sink.Addr, size)
	}
	return err
}
