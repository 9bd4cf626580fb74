package vswitch_test

import (
	"path/filepath"
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/vhostuser/frontend"
)

// hostileMemories are hostile guests that share their memory with the switch.
func hostileMemories() map[string]func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
	return map[string]func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile{
		"broadcasts, vhost-user":     floodsRing(frontend.Config{}, broadcasts),
		"random sources, vhost-user": floodsRing(frontend.Config{}, randomSources),
		"nonsense, vhost-user":       floodsRing(frontend.Config{}, nonsense),
		"pieces of a byte":           floodsRing(frontend.Config{Pieces: 60, Indirect: true}, broadcasts),
		"broken rings":               breaksRings,
	}
}

// floodsRing floods by a ring, as fast as the switch takes frames from it.
func floodsRing(
	driver frontend.Config, next func(b []byte) []byte,
) func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
	return func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
		w, conn := openVhostUser(tb, 1)
		addPort(tb, sw, "bad", w, cfg)
		f, err := frontend.New(conn, driver)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = f.Close() })
		b := make([]byte, frontend.Header+64<<10)
		return newHostile(tb, func(on bool) {
			n := len(next(b[frontend.Header:]))
			if !on || f.Pair[0].Send(b[:frontend.Header+n]) == 0 {
				time.Sleep(20 * time.Microsecond) // not a wait: the guest is off, or its ring is full
			}
		})
	}
}

// breaksRings connects to the switch, breaks a ring, takes its memory away, and does it again.
func breaksRings(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
	path := filepath.Join(tb.TempDir(), "bad")
	l, err := endpoint.ListenStream(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	w, err := vswitch.OpenVhostUser(l, "", 1)
	if err != nil {
		tb.Fatal(err)
	}
	addPort(tb, sw, "bad", w, cfg)
	turn := uint16(0)
	return newHostile(tb, func(on bool) {
		if !on {
			time.Sleep(time.Millisecond) // not a wait: the guest is off
			return
		}
		conn, err := frontend.Connect(path)
		if err != nil {
			return
		}
		f, err := frontend.New(conn, frontend.Config{})
		if err != nil {
			return
		}
		if turn++; turn%2 == 0 {
			f.Pair[0].Corrupt(40_000 + turn)
		} else {
			_ = f.Shrink()
			f.Pair[0].Kick(true)
		}
		_ = f.WaitClosed()
		_ = f.Close()
	})
}
