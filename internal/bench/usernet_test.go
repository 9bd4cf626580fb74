package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/network/config"
	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// nobody is the user that has the networks.
const nobody = 65534

// BenchmarkUserNetwork sends TCP between a guest of an unprivileged user and a machine outside, in
// each direction: through the user's network, and through passt, which serves one guest alone. It
// does so with the usual MTU, and with the one that passt announces. A figure is the time for so
// many MiB; without KVM the guest's processor limits both.
func BenchmarkUserNetwork(b *testing.B) {
	for _, mtu := range []int{config.MaxMTU, 1500} {
		network := newUserLab(b, mtu, (*userLab).network)
		passt := newUserLab(b, mtu, (*userLab).passt)
		for _, c := range []struct {
			what string
			mib  int // at an MTU of 1500 bytes
			do   func(l *userLab, mib int) (time.Duration, error)
		}{{"sends", 32, (*userLab).send}, {"receives", 32, (*userLab).receive}} {
			if mtu != 1500 {
				c.mib = 64
			}
			what := fmt.Sprintf(", MTU %d, guest %s %d MiB", mtu, c.what, c.mib)
			ways := []*Way{
				{
					Name: "vmnet network --user" + what,
					Do:   func(int) (time.Duration, error) { return c.do(network, c.mib) },
				},
				{Name: "passt alone" + what, Do: func(int) (time.Duration, error) { return c.do(passt, c.mib) }},
			}
			WarmUp(b, 0, ways...)
			Turns(b, 7, ways...)
			Report(b, ways...)
		}
	}
}

// userLab is a networkLab with a guest of nobody.
type userLab struct {
	*networkLab
	mtu  int
	home string
	vm   *testvm.VM
	name string
}

// newUserLab makes a lab with a guest that connect gives a NIC.
func newUserLab(b *testing.B, mtu int, connect func(l *userLab) error) *userLab {
	b.Helper()
	for _, program := range []string{"pasta", "passt"} {
		_, err := exec.LookPath(program)
		nstest.Require(b, program, err == nil, "apt install passt")
	}
	nstest.OpenTun(b)
	home, err := os.MkdirTemp("", "home") // a short path, for sockets
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(home) })
	l := &userLab{networkLab: newNetworkLab(b), mtu: mtu, home: home}
	l.name = filepath.Base(home)
	for _, err := range []error{
		os.Mkdir(home+"/run", 0o700), os.Chown(home+"/run", nobody, nobody),
		os.Chmod(home, 0o755), os.Chmod(l.dir, 0o755),
		os.Mkdir(home+"/cfg", 0o700), os.Chown(home+"/cfg", nobody, nobody),
	} {
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := connect(l); err != nil {
		b.Fatal(err)
	}
	l.tell("until ip link set eth0 up 2>/dev/null; do sleep 0.1; done; " +
		"udhcpc -f -n -q -i eth0 -t 10 -T 1")
	// Other DHCP clients than udhcpc take the MTU that passt announces. A network's device has it.
	l.tell(fmt.Sprintf("ip link set eth0 mtu %d && grep -x %[1]d /sys/class/net/eth0/mtu", mtu))
	return l
}

// start starts the guest of nobody. program is what nobody starts in QEMU's place; empty for QEMU.
func (l *userLab) start(program string) {
	l.Helper()
	c := testvm.Config{
		Name: l.name, Netns: l.host.Path(), BootTimeout: 5 * time.Minute, Logf: func(string, ...any) {},
		Cold: program != "", QEMU: program,
	}
	l.vm = testvm.StartT(l, c.OwnedBy(l, nobody))
}

// nobodys prepares a program that the user nobody runs on the host.
func (l *userLab) nobodys(argv ...string) *exec.Cmd {
	args := append([]string{"--net=" + l.host.Path(), "setpriv"}, nstest.Unprivileged(nobody)...)
	cmd := exec.Command("nsenter", append(args, argv...)...)
	cmd.Env = append(os.Environ(), "HOME="+l.home+"/cfg", "XDG_RUNTIME_DIR="+l.home+"/run",
		"XDG_CONFIG_HOME=", "XDG_STATE_HOME=")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// network starts the guest on a network of nobody, as a user does.
func (l *userLab) network() error {
	_, err := timed("go", "build", "-o", l.dir, "vmnet/cmd/qemu-netup", "vmnet/cmd/qemu-netup-full")
	if err != nil {
		return err
	}
	create := l.nobodys(l.program, "network", "create", "lab", "--nat", "--dhcp", "--ipv6=none",
		"--mtu", fmt.Sprint(l.mtu))
	if out, err := create.CombinedOutput(); err != nil {
		return fmt.Errorf("create: %w: %s", err, out)
	}
	l.Cleanup(func() { _ = l.nobodys(l.program, "network", "delete", "lab", "--force").Run() })
	starter := filepath.Join(l.dir, "start")
	script := fmt.Sprintf("#!/bin/sh\nexport HOME=%s/cfg XDG_RUNTIME_DIR=%[1]s/run XDG_CONFIG_HOME= XDG_STATE_HOME=\n"+
		"exec %s/qemu-netup --network lab -- qemu-system-x86_64 \"$@\"\n", l.home, l.dir)
	if err := os.WriteFile(starter, []byte(script), 0o755); err != nil {
		return err
	}
	l.start(starter)
	return nil
}

func (l *userLab) passt() error {
	socket := l.home + "/run/passt"
	passt := l.nobodys("passt", "--foreground", "--quiet", "--no-map-gw", "--socket", socket)
	if err := passt.Start(); err != nil {
		return err
	}
	l.Cleanup(func() {
		_ = passt.Process.Kill()
		_ = passt.Wait()
	})
	nstest.Eventually(l, 20*time.Second, "passt listens", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	l.start("")
	const netdev = `{"execute": "netdev_add", "arguments":
		{"type": "stream", "id": "n0", "server": false, "addr": {"type": "unix", "path": %q}}}`
	return monitor(l.vm.QMP, `{"execute": "qmp_capabilities"}`,
		strings.ReplaceAll(fmt.Sprintf(netdev, socket), "\n", " "),
		`{"execute": "device_add", "arguments": {"driver": "virtio-net-pci", "id": "d0", "netdev": "n0"}}`)
}

// tell runs a script in the guest.
func (l *userLab) tell(script string) string {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), 2*time.Minute)
	defer cancel()
	out, err := l.vm.Guest.Exec(ctx, "sh", "-c", script)
	if err != nil {
		l.Fatalf("%s: %v: %s", script, err, out)
	}
	return out
}

// send has the guest send so many MiB to a machine outside.
func (l *userLab) send(mib int) (time.Duration, error) {
	// The guest's end stays open, since pasta of Debian 12 forwards nothing to one that has ended.
	const script = "dd if=/dev/zero bs=64k count=%d 2>/dev/null; sleep 60"
	return l.exchange(fmt.Sprintf(script, mib<<4), func(c net.Conn) error {
		_, err := io.CopyN(io.Discard, c, int64(mib)<<20)
		return err
	})
}

// receive has a machine outside send so many MiB to the guest, which says when it has all.
func (l *userLab) receive(mib int) (time.Duration, error) {
	const script = "dd of=/dev/null bs=64k iflag=fullblock count=%d 2>/dev/null; echo; sleep 60"
	return l.exchange(fmt.Sprintf(script, mib<<4), func(c net.Conn) error {
		_, err := io.CopyN(c, zeros{}, int64(mib)<<20)
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		return err
	})
}

// exchange has the guest connect to a machine outside, run a script with the connection, and
// measures how long talk takes there. Copies by nc itself, of a KiB each, would be what is
// measured.
func (l *userLab) exchange(script string, talk func(net.Conn) error) (time.Duration, error) {
	var listener net.Listener
	err := l.outside.Do(func() (err error) {
		listener, err = net.Listen("tcp4", labOutside+":0")
		return err
	})
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	took := make(chan time.Duration, 1)
	failed := make(chan error, 2)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			failed <- err
			return
		}
		defer conn.Close()
		start := time.Now()
		if err := talk(conn); err != nil {
			failed <- err
			return
		}
		took <- time.Since(start)
	}()
	l.tell(fmt.Sprintf("nc %s %d -e sh -c '%s' >/dev/null 2>&1 &", labOutside, port, script))
	defer l.tell("killall sleep")
	select {
	case d := <-took:
		return d, nil
	case err := <-failed:
		return 0, err
	case <-time.After(time.Minute):
		return 0, errors.New("the guest takes more than a minute")
	}
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
