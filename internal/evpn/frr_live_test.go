package evpn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveEVPN runs three hosts with FRR, one of which reflects routes: guests reach each other,
// one moves, one is killed, and an FRR is killed and comes back.
func TestLiveEVPN(t *testing.T) {
	f := newFabric(t, 3)
	a, b, c := f.hosts[0], f.hosts[1], f.hosts[2]
	for _, h := range f.hosts {
		nstest.Eventually(t, longest, h.name+" knows the others", func() bool {
			s := h.ask()
			text, _ := s.Trouble(segment)
			return text == "" && len(s.Remotes) == 2 && s.Up == s.Peers
		})
	}
	if v := a.shown(); v.Static || v.Foreign || !slices.Equal(v.Remotes, []string{"192.0.2.2", "192.0.2.3"}) {
		t.Errorf("%+v", v)
	}
	one, two := a.guest(1), b.guest(2)
	one.reaches(two)
	two.reaches(one)
	nstest.Eventually(t, longest, "guest 2 is behind h2", func() bool { return a.knows(2, b) })

	f.moves(one, b, c)
	two.tap.Close()
	nstest.Eventually(t, longest, "a guest that has gone is forgotten", func() bool { return !a.knows(2, nil) })

	b.kill()
	nstest.Eventually(t, longest, "a host without FRR is forgotten", func() bool {
		return !slices.Contains(a.shown().Remotes, b.addr.String())
	})
	if text, _ := b.ask().Trouble(segment); !strings.Contains(text, "does not run") {
		t.Errorf("%q", text)
	}
	b.start()
	two = b.guest(2)
	one.reaches(two)
	two.reaches(one)
}

// What docs/evpn.md says of moves and of guests that end. On a busy machine, one of several tries
// must show that it is so.
const (
	longestGap    = 300 * time.Millisecond
	longestMemory = 500 * time.Millisecond
	tries         = 10
)

// fastest repeats what is measured until it takes at most that long, and logs each try.
func fastest(t testing.TB, what string, most time.Duration, try func(i int) time.Duration) {
	t.Helper()
	for i := range tries {
		took := try(i)
		t.Logf("%s: %v", what, took.Round(time.Millisecond))
		if took <= most {
			return
		}
	}
	t.Errorf("%s: none of %d tries took at most %v", what, tries, most)
}

// moves moves guests between two hosts while another one sends to them. Each has an address of its
// own, since FRR takes five moves of one for a duplicate.
func (f *fabric) moves(sender *guest, from, to *host) {
	f.t.Helper()
	fastest(f.t, "longest gap of frames to a guest that moves", longestGap, func(i int) time.Duration {
		id := byte(10 + i)
		moved := from.guest(id)
		sender.reaches(moved)
		nstest.Eventually(f.t, longest, "its host is known", func() bool { return f.hosts[0].knows(id, from) })
		last, gap := time.Now(), time.Duration(0)
		var n uint32
		step := func(at *guest) (heard bool) {
			n++
			sender.send(macOf(id), n)
			time.Sleep(5 * time.Millisecond) // not a wait: the sender's rate
			if heard = len(at.heard(sender.id)) > 0; heard {
				gap, last = max(gap, time.Since(last)), time.Now()
			}
			return heard
		}
		for range 20 {
			step(moved)
		}
		moved.tap.Close()
		again := to.guest(id)
		nstest.Eventually(f.t, longest, "frames follow a guest that has moved", func() bool { return step(again) })
		for range 20 {
			step(again)
		}
		nstest.Eventually(f.t, longest, "its host is known", func() bool {
			return f.hosts[0].knows(id, to) && !f.hosts[0].knows(id, from)
		})
		again.tap.Close()
		return gap
	})
}

// TestLiveKilledGuest kills QEMUs: their addresses leave the other host.
func TestLiveKilledGuest(t *testing.T) {
	f := newFabric(t, 2)
	a, b := f.hosts[0], f.hosts[1]
	m, err := tapmgr.Open(b.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	fastest(t, "the other host forgets a killed guest", longestMemory, func(i int) time.Duration {
		vm := testvm.StartT(t, testvm.Config{Name: fmt.Sprintf("evpn%d", i)})
		ctx, cancel := context.WithTimeout(context.Background(), nstest.Patience(longest))
		defer cancel()
		got, err := m.Attach(ctx, nic.Spec{
			Target: nic.Target{VM: fmt.Sprintf("evpn%d", i)}, NIC: "net0", Bridge: bridgeOf(segment),
			Vhost: nic.VhostOff,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Guest.UseNIC(ctx, got.NIC.MAC, "10.8.0.2/24"); err != nil {
			t.Fatal(err)
		}
		mac, err := net.ParseMAC(got.NIC.MAC)
		if err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, longest, "the other host knows the guest", func() bool {
			if a.knowsMAC(mac, b) {
				return true
			}
			_, _ = vm.Guest.Ping(ctx, "10.8.0.1") // nobody answers, but the question is heard
			return false
		})
		began := time.Now()
		if err := vm.Kill(); err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, longest, "a killed guest is forgotten", func() bool { return !a.knowsMAC(mac, nil) })
		return time.Since(began)
	})
}

// TestLiveNothingToAsk: a namespace without FRR is no error.
func TestLiveNothingToAsk(t *testing.T) {
	ns := nstest.New(t)
	a, err := OfNetns(ns, "").Ask(context.Background())
	if errors.Is(err, ErrNotInstalled) {
		nstest.Require(t, "frr", false, "apt install frr")
	}
	if s := a.Of(segment); err != nil || s.Running {
		t.Errorf("%+v, %v", s, err)
	}
}
