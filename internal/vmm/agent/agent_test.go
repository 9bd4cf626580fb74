package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/internal/vmm/qemu"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// served answers one client as script does, which gets the id of guest-sync-delimited.
func served(t *testing.T, script func(c net.Conn, id string)) qemu.Process {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qga")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		first, _ := bufio.NewReader(c).ReadString('\n')
		_, id, _ := strings.Cut(strings.TrimSpace(first), `"id":`)
		script(c, strings.TrimRight(id, "}"))
	}()
	return qemu.Process{PID: os.Getpid(), CmdLine: qemu.CmdLine{Agent: path}}
}

const answer = `{"return":[` +
	`{"name":"lo","ip-addresses":[{"ip-address":"127.0.0.1"}]},` +
	`{"name":"eth0","hardware-address":"52:54:00:AA:BB:CC","ip-addresses":[` +
	`{"ip-address":"10.0.0.2","prefix":24},{"ip-address":"fe80::1"},{"ip-address":"fe80::1%eth0"},` +
	`{"ip-address":"nonsense"},{"ip-address":"0.0.0.0"}]}]}` + "\n"

func TestInterfaces(t *testing.T) {
	p := served(t, func(c net.Conn, id string) {
		// the rest of an answer to a former client comes first, and one to another sync
		fmt.Fprintf(c, "%s\xff{\"return\":1}\n{}\n\xff{\"return\":%s}\n%s", strings.Repeat("x", 5000), id, answer)
	})
	all, err := Interfaces(t.Context(), p)
	got := fmt.Sprint(all, err)
	if want := "[{52:54:00:aa:bb:cc [10.0.0.2 fe80::1]}] <nil>"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestHostileAgents(t *testing.T) {
	for name, c := range map[string]struct {
		script func(c net.Conn, id string)
		want   string
	}{
		"endless": {func(c net.Conn, _ string) {
			for b := make([]byte, 1<<12); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}, "EOF"},
		"endless line": {func(c net.Conn, id string) {
			fmt.Fprintf(c, "\xff{\"return\":%s}\n", id)
			for b := []byte(strings.Repeat("[", 1<<12)); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}, "EOF"},
		"refusing": {func(c net.Conn, id string) {
			fmt.Fprintf(c, "\xff{\"return\":%s}\n{\"error\":{\"desc\":\"disabled\"}}\n", id)
		}, "disabled"},
		"hanging up": {func(net.Conn, string) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := Interfaces(t.Context(), served(t, c.script))
			if len(all) > 0 || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v: want an error with %q", all, err, c.want)
			}
		})
	}
}

func TestSilentAgent(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	late := errors.New("late")
	p := served(t, func(c net.Conn, _ string) {
		cancel(late)
		_, _ = io.Copy(io.Discard, c) // until the client hangs up
	})
	if all, err := Interfaces(ctx, p); len(all) > 0 || !errors.Is(err, late) {
		t.Errorf("%v, %v", all, err)
	}
}

// TestRelativePath finds a socket by a path that is relative to the VMM's working directory.
func TestRelativePath(t *testing.T) {
	p := served(t, func(c net.Conn, id string) { fmt.Fprintf(c, "\xff{\"return\":%s}\n%s", id, answer) })
	t.Chdir(filepath.Dir(p.Agent))
	p.Agent = filepath.Base(p.Agent)
	if all, err := Interfaces(t.Context(), p); len(all) != 1 || err != nil {
		t.Errorf("%v, %v", all, err)
	}
}

// TestOtherListener: nothing is sent to a process that is not the VMM.
func TestOtherListener(t *testing.T) {
	sent := make(chan string, 1)
	path := filepath.Join(t.TempDir(), "other")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			sent <- err.Error()
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		b, _ := io.ReadAll(c)
		sent <- string(b)
	}()
	_, err = Interfaces(t.Context(), qemu.Process{PID: os.Getppid(), CmdLine: qemu.CmdLine{Agent: path}})
	if err == nil || !strings.Contains(err.Error(), "instead of the guest's VMM") {
		t.Error(err)
	}
	if text := <-sent; text != "" {
		t.Errorf("it was sent %q", text)
	}
	if _, err := Interfaces(t.Context(), qemu.Process{}); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(answer))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parse(b)
		if err != nil && all != nil {
			t.Error(all, err)
		}
		for _, i := range all {
			if len(i.Addrs) > maxAddresses || i.MAC == "" {
				t.Error(i)
			}
		}
	})
}
