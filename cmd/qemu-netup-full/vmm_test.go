package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// vmmEnv makes a VMM that is not QEMU of this test binary.
const vmmEnv = "VMNET_TEST_VMM"

// vmm is such a program: the user nobody runs it, and it knows only what it was given.
func (h *host) vmm() string {
	h.Helper()
	h.copy(h.path("vmm"), "/proc/self/exe", 0o755)
	return h.path("vmm")
}

// seen is what it says of its world, a line of JSON.
type seen struct {
	Args  []string
	Frame string // the sender of the first frame that it received
	// What it tried besides, and may not: a second queue of the device, by the tun driver, and
	// by the queue's own file; and the device's netns. The errors' texts.
	Second, Reopen, Enter string
}

func runVMM() int {
	var d struct {
		VM   string
		NICs []struct {
			Interface, Type string
			Queues          []int
			Netns           *int
		}
	}
	if err := json.Unmarshal([]byte(os.Getenv("VMNET_JSON")), &d); err != nil || len(d.NICs) != 1 {
		fmt.Fprintln(os.Stderr, err, d)
		return 1
	}
	nic := d.NICs[0]
	fmt.Fprintln(os.Stderr, "ready")
	s := seen{
		Args: os.Args[1:], Frame: frame(nic.Queues[0]), Second: errorText(secondQueue(nic.Interface)),
		Reopen: errorText(reopen(nic.Queues[0])), Enter: "there is none",
	}
	if nic.Netns != nil {
		runtime.LockOSThread()
		s.Enter = errorText(unix.Setns(*nic.Netns, unix.CLONE_NEWNET))
	}
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		return 1
	}
	return 0
}

// frame waits for one. Before it comes a virtio-net header of 10 bytes.
func frame(queue int) string {
	buf := make([]byte, 2000)
	for end := time.Now().Add(nstest.Patience(10 * time.Second)); time.Now().Before(end); {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(queue), Events: unix.POLLIN}}, 100)
		n, err := unix.Read(queue, buf)
		const header = 10
		if err == nil && n >= header+14 {
			return net.HardwareAddr(buf[header+6:][:6]).String()
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			return err.Error()
		}
	}
	return "none"
}

// secondQueue asks the tun driver for one more of a device.
func secondQueue(name string) error {
	f, err := os.OpenFile(tun.Device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	return unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req)
}

// reopen opens the queue's file again, which is a queue more of a macvtap.
func reopen(queue int) error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", queue), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); strings.HasPrefix(name, tun.Device) {
		return errors.New("a queue of nothing")
	}
	return nil
}

func errorText(err error) string {
	if err == nil {
		return "success"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
