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

	"vmnet/internal/nstest"
	"vmnet/testvm/agent"
)

func TestLiveNoWaitAndReset(t *testing.T) {
	vm := StartT(t, Config{NoWait: true, AllowReset: true})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // it boots twice
	defer cancel()
	if _, err := vm.Guest.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	before := vm.Pid()
	if _, err := vm.Guest.Exec(ctx, "touch", "/tmp/before-reset"); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Guest.Run(ctx,
		agent.Command{Argv: []string{"sh", "-c", "(sleep 0.2; reboot -f) >/dev/null 2>&1 &"}}); err != nil {
		t.Fatal(err)
	}
	gone := func() bool {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		out, err := vm.Guest.Run(try, agent.Command{Argv: []string{"ls", "/tmp/before-reset"}})
		return err == nil && out.Code != 0
	}
	nstest.Eventually(t, time.Minute, "the guest is reset and comes back", gone)
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
		{
			"bad argument",
			Config{ExtraArgs: []string{"-no-such-option"}},
			[]string{"QEMU ended: exit status 1", "no-such-option"},
		},
		{
			"bad device",
			Config{NoWait: true, ExtraArgs: []string{"-device", "no-such-device"}},
			[]string{"exit status 1", "no-such-device"},
		},
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

// TestLiveNetnsRunsQEMUInside: a tap named in a netdev is found in that namespace.
func TestLiveNetnsRunsQEMUInside(t *testing.T) {
	ns := nstest.New(t)
	vm := StartT(t, Config{NoWait: true, Netns: ns.Path()})
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
	// not a wait: the death signal must not come while the helper lives
	time.Sleep(100 * time.Millisecond)
	if !alive(pid) {
		t.Error("QEMU died before its starter")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	defer func() {
		if alive(pid) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}()
	nstest.Eventually(t, 30*time.Second, "QEMU ends with its starter", func() bool { return !alive(pid) })
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
