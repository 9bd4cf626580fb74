package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/nstest"
)

// TestThousands connects more clients than there is room for. Idle ones make room.
func TestThousands(t *testing.T) {
	path, s := serve(t)
	var silent []*net.UnixConn
	for range 2000 {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, conn)
		if len(silent) > 300 {
			_ = silent[0].Close()
			silent = silent[1:]
		}
	}
	c := client(t, path)
	if _, err := c.Info(soon(t)); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	if n := len(s.sessions); n > maxSessions {
		t.Errorf("%d sessions", n)
	}
	s.mu.Unlock()
	for _, conn := range silent {
		_ = conn.Close()
	}
}

// TestDeaf has clients that request much and read nothing, while another client is served.
func TestDeaf(t *testing.T) {
	path, s := serve(t)
	c := client(t, path)
	guest(t, c, control.Port{Name: "a", Label: strings.Repeat("l", control.MaxLabel)})
	index := slices.Sorted(maps.Keys(s.ports.byIndex()))[0]
	for i := range 4000 {
		s.ports.sw.FDB().Learn(vswitch.KeyOf(net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}, 0), index)
	}
	for range maxSessions - 1 {
		conn := raw(t, path)
		if err := fdpass.SendOver(conn, []byte(`{"do":"fdb"}`)); err != nil {
			t.Fatal(err)
		}
	}
	// In turn, these clients would take five minutes (sendTimeout). All at once, they cost work
	// before that.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for range 5 {
		if all, err := c.FDB(ctx); err != nil || len(all) < 3000 {
			t.Fatalf("%d addresses, %v", len(all), err)
		}
	}
}

// TestManyPorts fills the switch with ports and lists them, in several messages.
func TestManyPorts(t *testing.T) {
	path, s := serve(t)
	c := client(t, path)
	label := strings.Repeat("\x01", control.MaxLabel) // six bytes each, as JSON
	near, _ := socketFiles(t)
	const n = 200
	for i := range n {
		if err := c.AddPort(soon(t), control.Port{
			Name: fmt.Sprintf("p%03d", i), Kind: control.Socket, Label: label,
			Config: vport.Config{MTU: 68},
		}, near); err != nil {
			t.Fatal(err)
		}
	}
	all, err := c.Ports(soon(t))
	if err != nil || len(all) != n || all[n-1].Name != "p199" || all[n-1].Label != label {
		t.Fatalf("%d ports, %v", len(all), err)
	}
	pieces := 0
	err = s.performFor(&call{send: func(a control.Reply, _ ...*os.File) error {
		pieces++
		if b, err := json.Marshal(a); err != nil || len(b) > control.MaxMessage-16 {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		return nil
	}}, []byte(`{"do":"ports"}`))
	if err != nil || pieces < 5 {
		t.Errorf("%d messages, %v", pieces, err)
	}
}

// TestAtOnce lets many clients change ports at the same time.
func TestAtOnce(t *testing.T) {
	path, s := serve(t)
	near, _ := socketFiles(t)
	cmd, pidfd := sleeper(t)
	var all sync.WaitGroup
	for i := range 8 {
		c := client(t, path)
		all.Go(func() {
			for n := range 20 {
				name := fmt.Sprintf("p%d", (i+n)%5)
				p, files := control.Port{Name: name, Kind: control.Socket}, []*os.File{near}
				if n%2 == 0 {
					p.Holder, files = cmd.Process.Pid, []*os.File{pidfd, near}
				}
				_ = c.AddPort(context.Background(), p, files...)
				_ = c.SetLabel(context.Background(), name, "x")
				_, _ = c.Ports(context.Background())
				_, _ = c.FDB(context.Background())
				_ = c.Flush(context.Background(), "")
				_ = c.RemovePort(context.Background(), name)
			}
		})
	}
	all.Wait()
	_ = cmd.Process.Kill()
	nstest.Eventually(t, patience, "held ports are gone", func() bool {
		for _, p := range s.Ports() {
			if p.Holder != 0 {
				return false
			}
		}
		return true
	})
}
