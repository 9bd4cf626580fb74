package tapmgr_test

import (
	"context"
	"net"
	"testing"

	"vmnet/internal/kernel/rtnl"
	"vmnet/testvm/traffic"
)

// tcpSink listens on the host's side and returns its address.
func (h *host) tcpSink() string {
	h.Helper()
	var s *traffic.Server
	err := h.ns.Do(func() (err error) { s, err = traffic.ServeTCP(hostAddr + ":0"); return err })
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(s.Close)
	return s.Addr
}

func (h *host) tcpSend(ctx context.Context, to string, n int64) error {
	return h.ns.Do(func() error { _, err := traffic.SendTCP(ctx, to, n); return err })
}

func (h *host) setMTU(index, mtu int) {
	h.Helper()
	if err := h.nl.Set(index, rtnl.MTU(mtu)); err != nil {
		h.Fatal(err)
	}
}

func macs(t testing.TB, texts ...string) []net.HardwareAddr {
	t.Helper()
	var all []net.HardwareAddr
	for _, s := range texts {
		mac, err := net.ParseMAC(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, mac)
	}
	return all
}
