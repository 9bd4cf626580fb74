package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// flooding is a VMM with the command line of a QEMU. Its monitor accepts the capabilities of every
// client, and then sends without end.
func flooding() {
	l, err := net.Listen("unix",
		strings.TrimSuffix(strings.TrimPrefix(os.Args[len(os.Args)-1], "unix:"), ",server=on,wait=off"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	event := []byte(`{"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "vmnet-net0", "path": "` +
		strings.Repeat("x", 60<<10) + "\"}}\n")
	for {
		conn, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		go func() {
			defer conn.Close()
			fmt.Fprintln(conn,
				`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`)
			var capabilities struct{ ID uint64 }
			if err := json.NewDecoder(conn).Decode(&capabilities); err != nil {
				return
			}
			for _, err := fmt.Fprintf(conn, `{"return": {}, "id": %d}`+"\n", capabilities.ID); err == nil; {
				_, err = conn.Write(event)
			}
		}()
	}
}

// floodingGuest starts such a VMM as the user nobody. It has a macvtap on eth0 whose receive filter
// vmnet watch mirrors.
func floodingGuest(t *testing.T, ns *netns.NS, vm string) {
	t.Helper()
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	lower, err := nl.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}
	d, err := macvlan.Create(nl, lower, vtap.Config{Kind: vtap.Macvtap, Name: "flood-net0", Mode: "bridge", MAC: mac})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	alias, err := nic.Record{
		VM: vm, NIC: "net0", Type: string(vtap.Macvtap), Source: "eth0", Mode: "bridge", RxFilter: nic.RxMirror,
		MAC: mac, Model: nic.DefaultModel, Queues: 1,
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Set(rtnl.Alias(alias)), d.OpenQueue(), d.Up()); err != nil {
		t.Fatal(err)
	}
	pin, err := os.Open(d.Netns().Path())
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Close()
	const nobody = 65534
	dir, err := os.MkdirTemp("", "flood")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("flooding")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "qmp")
	cmd := exec.Command("setpriv", "--reuid", fmt.Sprint(nobody), "--regid", fmt.Sprint(nobody), "--clear-groups",
		program, "-name", "guest="+vm, "-qmp", "unix:"+socket+",server=on,wait=off")
	cmd.ExtraFiles, cmd.Stderr = append([]*os.File{pin}, d.Queues()...), os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	nstest.Eventually(t, patience, "its monitor listens", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
}

// TestLiveFloodingMonitor: a monitor that sends without end costs root's verbs no more memory than
// the unit of vmnet watch may have, and no more time than a silent one.
func TestLiveFloodingMonitor(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	ns := nstest.New(t)
	ipIn(t, ns.Path(), "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	ipIn(t, ns.Path(), "link", "set", "eth0", "up")
	vm := uniqueVM()
	floodingGuest(t, ns, vm)
	for _, c := range []struct {
		args []string
		runs time.Duration // after which it is interrupted; 0: it ends by itself
		says string
	}{
		{[]string{"show", vm}, 0, "guest's view: unknown"},
		{[]string{"check"}, 0, vm},
		{[]string{"watch", "--no-libvirt"}, 4 * time.Second, "ready"},
	} {
		t.Run(c.args[0], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, "vmnet", append([]string{"--netns", ns.Path()}, c.args...)...)
			cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			start := time.Now()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if c.runs > 0 {
				time.AfterFunc(c.runs, func() { _ = cmd.Process.Signal(syscall.SIGINT) })
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			used := highWater(ended, cmd.Process.Pid) // check finds differences and fails
			t.Logf("%v, %d MiB: %s", time.Since(start), used>>10, out.String())
			if used == 0 || used > 128<<10 {
				t.Errorf("it took %d KiB, want at most the unit's 128 MiB", used)
			}
			if ctx.Err() != nil || !strings.Contains(out.String(), c.says) {
				t.Errorf("not within %v, or without %q: %s", patience, c.says, out.String())
			}
		})
	}
}

// highWater returns the most memory in KiB that a process has had until it ended. Its rusage would
// count what the test had before execve(2) (setmax_mm_hiwater_rss in the kernel's fs/exec.c).
func highWater(ended <-chan error, pid int) (most int) {
	for {
		select {
		case <-ended:
			return most
		case <-time.After(5 * time.Millisecond):
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.HasPrefix(string(status), "Name:\tvmnet\n") { // not executed yet
			continue
		}
		if _, rest, ok := strings.Cut(string(status), "\nVmHWM:"); ok {
			line, _, _ := strings.Cut(rest, " kB")
			if kib, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
				most = max(most, kib)
			}
		}
	}
}
