package vswitch_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// TestLiveSourceGoes has guests send frames to all kinds of ports, whole or to be finished, that
// are gone from their memory behind the head. Only the guests' own sessions end, each with a
// notice.
func TestLiveSourceGoes(t *testing.T) {
	notices := make(chan string, 16)
	sw := vswitch.New(vswitch.Config{Notice: func(text string) { notices <- text }})
	t.Cleanup(func() { _ = sw.Close() })
	kinds := []string{"tap", "plain tap", "packet", "vhost-user", "socket", "stream"}
	var hosts []*host
	for n, kind := range append(kinds, "tap") {
		hosts = append(hosts, corner{kind, 9000, "all"}.host(t, sw, n))
	}
	last := hosts[len(kinds)]
	all := capture.Config{Out: true}
	for n := range kinds {
		all.Ports = append(all.Ports, "h"+string(rune('0'+n)))
	}
	for _, c := range []struct {
		name     string
		head     offload.Header
		captured bool
	}{
		{"whole", offload.Header{}, false},
		{"partial checksum", offload.Header{Flags: offload.NeedsCsum, CsumStart: 34, CsumOffset: 16}, false},
		{"captured", offload.Header{}, true},
	} {
		var r *capture.Reader
		if c.captured {
			var err error
			if r, err = startCapture(sw, all); err != nil {
				t.Fatal(err)
			}
			go func() {
				for _, err := r.Next(); err == nil; _, err = r.Next() {
				}
			}()
		}
		w, conn := openVhostUser(t, 1)
		p := addPort(t, sw, "hostile", w, vport.Config{MTU: 9000})
		f, err := frontend.New(conn, frontend.Config{})
		if err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, 20*time.Second, "the port is up", func() bool { return p.State() == vport.StateUp })
		if err := f.Pair[0].SendLost(lostFrame(c.head)); err != nil {
			t.Fatal(err)
		}
		select {
		case text := <-notices:
			if !strings.Contains(text, "port hostile") || !strings.Contains(text, "its memory") {
				t.Errorf("%s: notice %q", c.name, text)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: no notice", c.name)
		}
		for n, kind := range kinds {
			if err := tryTCP(t, last, hosts[n], hosts[n].v4+":0", 200_000, 30*time.Second); err != nil {
				t.Errorf("%s: afterwards, to the %s: %v", c.name, kind, err)
			}
		}
		_ = f.Close()
		if err := sw.RemovePort("hostile"); err != nil {
			t.Error(err)
		}
		if r != nil {
			_ = r.Stop()
			_ = r.Close()
		}
	}
	for n, kind := range kinds {
		if st := sw.Ports()[n].Stats(); st.Drops[vswitch.Unreadable.String()] == 0 {
			t.Errorf("the %s has not dropped what is gone: %v", kind, st.Drops)
		}
	}
}

// lostFrame returns a frame for all hosts with its header.
func lostFrame(h offload.Header) []byte {
	f := make([]byte, frontend.Header+8900)
	h.Put(f)
	ether := f[frontend.Header:]
	copy(ether, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0xee, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(ether[12:], 0x88b5)
	return f
}
