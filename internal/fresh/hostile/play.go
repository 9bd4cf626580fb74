package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/control/server"
	"vmnet/internal/kernel/procfd"
)

func words(s string) []string { return strings.Fields(s) }

// play plays a part of the hostile user, forever.
func play(role string) error {
	role, argument, _ := strings.Cut(role, " ")
	if err := lie(); err != nil {
		return err
	}
	switch role {
	case "monitor":
		return monitor(argument)
	case "swap":
		return swap()
	case "name":
		return rename(argument)
	case "switch":
		return runSwitch(argument)
	case "files":
		return hold(argument)
	}
	return fmt.Errorf("role %q: unknown", role)
}

func ready() { fmt.Println("ready") }

// labels are forged labels: names of files that claim NICs.
var labels = []string{
	"vmnet vm=P2 nic=net0 type=socket source=lan0 switch=on netns=4026531840 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1",
	"vmnet vm=web nic=net0 type=tap source=br0 netns=4026531840 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1 state=attaching",
	"vmnet vm=\x1b[2J nic=net0 type=socket",
	"vmnet " + strings.Repeat("x", 200),
}

// lie opens forged labels. They are closed when the process exits.
func lie() error {
	for _, text := range labels {
		f, err := procfd.NewLabel(text)
		if err != nil {
			return err
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 50); err != nil {
			return err
		}
	}
	return nil
}

// monitor listens like a guest's monitor, on fd 3 too, as with libvirt guests. It greets every
// second client and answers with replies to other commands; to the others it sends nothing.
func monitor(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		return err
	}
	if err := unix.Dup3(int(f.Fd()), 3, 0); err != nil {
		return err
	}
	ready()
	for n := 0; ; n++ {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if n%2 == 0 {
			go answer(c)
		}
	}
}

func answer(c net.Conn) {
	defer c.Close()
	_, err := fmt.Fprintln(c,
		`{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "\u001b[2J"}, "capabilities": ["oob"]}}`)
	for in := bufio.NewScanner(c); err == nil && in.Scan(); {
		_, err = fmt.Fprintln(c, `{"return": {"name": "P2", "UUID": "00000000-0000-0000-0000-000000000000"}}`)
	}
}

// swap replaces, at a hundred fds, a file that may belong to a NIC with a FIFO.
func swap() error {
	fifo := filepath.Join(place, "tap9")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return err
	}
	var files []int
	for _, path := range []string{"/proc/self/ns/net", fifo, "/dev/net/tun", fifo} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			f, err = os.Open(path)
		}
		if err == nil {
			files = append(files, int(f.Fd()))
		}
	}
	ready()
	for i := 0; ; i++ {
		if err := unix.Dup3(files[i%len(files)], 100+i/len(files)%100, 0); err != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// rest blocks until the process is killed. The runtime would end a process without cgo whose
// goroutines all wait for each other.
func rest() error {
	for {
		_ = unix.Pause()
	}
}

// rename gives the process a hostile name.
func rename(name string) error {
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		return err
	}
	ready()
	return rest()
}

// runSwitch runs a switch as the hostile user.
func runSwitch(path string) error {
	l, err := server.Listen(path)
	if err != nil {
		return err
	}
	s := server.New(vswitch.New(vswitch.Config{}), control.Info{Name: "lan0", Version: "hostile"})
	ready()
	return s.Serve(context.Background(), l)
}

// hold opens that many files, of kinds at which a scan of processes looks closer.
func hold(count string) error {
	most, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	var kinds []int
	for _, path := range []string{"/dev/null", "/proc/self/ns/net", "/dev/net/tun"} {
		if f, err := os.Open(path); err == nil {
			kinds = append(kinds, int(f.Fd()))
		}
	}
	label, err := procfd.NewLabel(labels[0])
	if err != nil {
		return err
	}
	kinds = append(kinds, int(label.Fd()))
	for fd := 1000; fd < min(1000+most, int(limit.Cur)); fd++ {
		if err := unix.Dup3(kinds[fd%len(kinds)], fd, 0); err != nil {
			return err
		}
	}
	ready()
	return rest()
}
