package testvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/testvm/agent"
	"vmnet/testvm/traffic"
)

// helperEnv makes the test program a process that starts a machine and waits.
const helperEnv = "TESTVM_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		helper()
		return
	}
	leaktest.Main(m)
}

func TestLiveGuestOnBothMachines(t *testing.T) {
	for _, c := range []Config{
		{Name: "pc"},
		{Name: "q35", Machine: "q35", SparePorts: 4, CPUs: 2},
	} {
		t.Run(c.Name, func(t *testing.T) {
			c.NICs = []NIC{{Netdev: "user,restrict=on"}}
			vm := StartT(t, c)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			g := vm.Guest
			nic, err := g.WaitNIC(ctx, "52:54:00:76:6d:00")
			if err != nil {
				t.Fatal(err)
			}
			if nic.Name != "eth0" || nic.Driver != "virtio_net" || nic.PCI == "" || nic.TxQueues != 1 || nic.Up {
				t.Errorf("the NIC: %+v", nic)
			}
			if err := errors.Join(g.Up(ctx, "eth0"), g.AddAddr(ctx, "eth0", "10.0.2.15/24"), g.AddRoute(ctx, "default", "10.0.2.2")); err != nil {
				t.Fatal(err)
			}
			rtt, err := g.Ping(ctx, "10.0.2.2")
			if err != nil || rtt <= 0 {
				t.Fatalf("ping: %s, %v", rtt, err)
			}
			name, err := g.Exec(ctx, "hostname")
			if err != nil || name != c.Name+"\n" {
				t.Errorf("hostname: %q, %v", name, err)
			}
			if n, err := g.WaitNIC(ctx, nic.MAC); err != nil || !n.Up || !n.Carrier || n.Counters.RxPackets == 0 || n.Counters.TxBytes == 0 {
				t.Errorf("after the ping: %+v, %v", n, err)
			}
		})
	}
}

func TestLiveAgentMethods(t *testing.T) {
	g := StartT(t, Config{Name: "P2", NICs: []NIC{{Netdev: "user,restrict=on"}}}).Guest
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	fails := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", what, err, want)
		}
	}
	check("set MTU", g.SetMTU(ctx, "eth0", 1400))
	check("set MAC", g.SetMAC(ctx, "eth0", "52:54:00:00:00:99"))
	check("up", g.Up(ctx, "eth0"))
	check("add v6", g.AddAddr(ctx, "eth0", "fd00::2/64"))
	check("add again", g.AddAddr(ctx, "eth0", "fd00::2/64"))
	_, err := g.Ping(ctx, "fd00::2")
	check("ping the new v6 address", err)
	link, err := g.WaitNIC(ctx, "52:54:00:00:00:99")
	check("wait for the MAC", err)
	if link.MTU != 1400 || !strings.Contains(strings.Join(link.Addrs, " "), "fd00::2/64") {
		t.Errorf("the changed link: %+v", link)
	}
	check("delete v6", g.DelAddr(ctx, "eth0", "fd00::2/64"))
	fails("delete again", g.DelAddr(ctx, "eth0", "fd00::2/64"), "guest P2: addr: address fd00::2/64 on eth0")
	check("down", g.Down(ctx, "eth0"))
	check("wait for no such NIC", g.WaitNICGone(ctx, "52:54:00:00:00:98"))
	fails("no such link", g.Up(ctx, "eth7"), "link eth7")
	_, err = g.Exec(ctx, "no-such-tool")
	fails("no such tool", err, "no such program in the guest")
	_, err = g.Exec(ctx, "sh", "-c", "echo sorry >&2; exit 7")
	fails("exit status", err, "exit status 7: sorry")
	out, err := g.Run(ctx, agent.Command{Argv: []string{"wc", "-c"}, Stdin: "12345"})
	check("stdin", err)
	if strings.TrimSpace(out.Stdout) != "5" || out.Code != 0 {
		t.Errorf("wc -c: %+v", out)
	}

	addr, err := g.TCPServe(ctx, "127.0.0.1:0")
	check("tcp serve", err)
	tcp, err := g.TCPSend(ctx, addr, 1<<20)
	check("tcp send", err)
	if tcp.Bytes != 1<<20 {
		t.Errorf("tcp: %+v", tcp)
	}
	check("tcp unserve", g.TCPUnserve(ctx, addr))
	_, err = g.TCPSend(ctx, addr, 1)
	fails("tcp send to nobody", err, "refused")
	addr, err = g.UDPServe(ctx, "[::1]:0")
	check("udp serve", err)
	udp, err := g.UDPSend(ctx, addr, 20, 1000)
	check("udp send", err)
	if want := (traffic.UDPResult{Sent: 20, Received: 20}); udp != want {
		t.Errorf("udp: %+v, want %+v", udp, want)
	}
}

func TestLiveAbandonedRequestsEndInTheGuest(t *testing.T) {
	vm := StartT(t, Config{})
	g := vm.Guest
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := g.Exec(short, "sleep", "1234"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	ctx, cancel2 := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel2()
	for {
		out, err := g.Exec(ctx, "ps")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, "sleep 1234") {
			break
		}
	}
	// Another connection, once this one has ended, finds the agent in good order.
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Links(ctx); !errors.Is(err, agent.ErrGone) {
		t.Errorf("on the closed connection: %v", err)
	}
	for range 3 {
		again, err := agent.Dial(ctx, "again", vm.Agent)
		if err != nil {
			t.Fatal(err)
		}
		_, err = again.Links(ctx)
		if err := errors.Join(err, again.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLiveNoWaitAndReset(t *testing.T) {
	vm := StartT(t, Config{NoWait: true, AllowReset: true})
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	if _, err := vm.Guest.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	before := vm.Pid()
	if _, err := vm.Guest.Exec(ctx, "touch", "/tmp/before-reset"); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Guest.Run(ctx, agent.Command{Argv: []string{"sh", "-c", "(sleep 0.2; reboot -f) >/dev/null 2>&1 &"}}); err != nil {
		t.Fatal(err)
	}
	gone := func() bool {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		out, err := vm.Guest.Run(try, agent.Command{Argv: []string{"ls", "/tmp/before-reset"}})
		return err == nil && out.Code != 0
	}
	for !gone() {
		if ctx.Err() != nil {
			t.Fatal("the guest was not reset, or did not come back")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if vm.Pid() != before || !alive(before) {
		t.Error("QEMU did not live through the reset")
	}
}

func TestLivePausedGuestDoesNotAnswer(t *testing.T) {
	vm := StartT(t, Config{Paused: true})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := vm.Guest.WaitReady(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestLivePowerOffEndsTheMachine(t *testing.T) {
	for _, args := range [][]string{nil, {"acpi=off"}} {
		vm := StartT(t, Config{KernelArgs: args})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := vm.Guest.PowerOff(ctx); err != nil {
			t.Fatal(err)
		}
		if err := vm.Wait(ctx); err != nil {
			t.Errorf("%q: QEMU ended with %v", args, err)
		}
		nothingLeft(t, vm)
	}
}

func TestLiveContextEndsTheMachine(t *testing.T) {
	Require(t)
	ctx, cancel := context.WithCancel(t.Context())
	vm, err := Start(ctx, Config{NoWait: true, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Stop()
	if !alive(vm.Pid()) {
		t.Error("QEMU does not run")
	}
	cancel()
	select {
	case <-vm.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("QEMU lives on")
	}
	nothingLeft(t, vm)
}

func TestLiveKillIsAnAccident(t *testing.T) {
	vm := StartT(t, Config{NoWait: true})
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := vm.Wait(ctx); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("QEMU ended with %v", err)
	}
	if _, err := vm.Guest.Links(ctx); !errors.Is(err, agent.ErrGone) {
		t.Errorf("a request to the dead: %v", err)
	}
	nothingLeft(t, vm)
	if err := vm.Kill(); err != nil {
		t.Errorf("kill again: %v", err)
	}
}

func TestLiveStartErrorsTellTheStory(t *testing.T) {
	Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for _, c := range []struct {
		name   string
		config Config
		want   []string
	}{
		{"bad argument", Config{ExtraArgs: []string{"-no-such-option"}}, []string{"QEMU ended: exit status 1", "no-such-option"}},
		{"bad device", Config{NoWait: true, ExtraArgs: []string{"-device", "no-such-device"}}, []string{"exit status 1", "no-such-device"}},
		{"panic", Config{KernelArgs: []string{"rdinit=/absent"}}, []string{"the console's last lines", "Kernel panic"}},
		{"silence", Config{BootTimeout: 50 * time.Millisecond}, []string{"no answer within 50ms"}},
		{"no program", Config{QEMU: "no-such-qemu"}, []string{"no-such-qemu"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Name = "P9"
			vm, err := Start(ctx, c.config)
			if err == nil {
				vm.Stop()
				t.Fatal("it started")
			}
			for _, want := range append(c.want, "start guest P9") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

// A tap named in a netdev is found in that namespace.
func TestLiveNetnsRunsQEMUInside(t *testing.T) {
	ns := nstest.New(t)
	vm := StartT(t, Config{NoWait: true, Netns: ns})
	want, err := ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", vm.Pid()))
	if err != nil || got != fmt.Sprintf("net:[%d]", want) {
		t.Errorf("QEMU is in %s, %v, want inode %d", got, err, want)
	}
}

func TestLiveExtraFilesAreInherited(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	vm := StartT(t, Config{ExtraFiles: []*os.File{theirs}, NICs: []NIC{{Netdev: "socket,fd=3"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := vm.Guest.Up(ctx, "eth0"); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 4) // IPv6 sends by itself; each frame has its length before it
	if _, err := ours.Read(frame); err != nil || frame[0] != 0 {
		t.Errorf("read %v, %v", frame, err)
	}
}

// TestLiveDeathOfTheStarter kills the process that started the machine.
func TestLiveDeathOfTheStarter(t *testing.T) {
	Require(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"=1", "TMPDIR="+t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	line := make([]byte, 32)
	n, err := out.Read(line)
	pid, convErr := strconv.Atoi(string(bytes.TrimSpace(line[:n])))
	if err := errors.Join(err, convErr); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("the helper said %q: %v", line[:n], err)
	}
	time.Sleep(100 * time.Millisecond) // the death signal must not come while the helper lives
	if !alive(pid) {
		t.Error("QEMU died before its starter")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for end := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			_ = unix.Kill(pid, unix.SIGKILL)
			t.Fatal("QEMU outlived its starter")
		}
	}
}

func helper() {
	vm, err := Start(context.Background(), Config{NoWait: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(1)
	}
	fmt.Println(vm.Pid())
	_ = vm.Wait(context.Background())
}

// alive reports whether the process runs; one that waits to be reaped does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

func nothingLeft(t *testing.T, vm *VM) {
	t.Helper()
	if alive(vm.Pid()) {
		t.Error("QEMU lives on")
	}
	if _, err := os.Stat(vm.dir); err == nil {
		t.Errorf("%s is left", vm.dir)
	}
}
