package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"vmnet/qmp"
)

// guest is a Relay to a QEMU that has one device, n. A real one passes the commands to the process
// that holds the monitor, such as libvirt.
type guest struct{ events chan qmp.Event }

func (g guest) Command(_ context.Context, command string, _ *os.File) (string, error) {
	switch {
	case strings.Contains(command, "query-version"):
		return `{"return": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}}`, nil
	case strings.Contains(command, "query-name"):
		return `{"return": {"name": "P2"}}`, nil
	case strings.Contains(command, `"id":"n"`):
		g.events <- qmp.Event{
			Name: "DEVICE_DELETED",
			Data: json.RawMessage(`{"device": "n", "path": "/machine/peripheral/n"}`),
		}
		return `{"return": {}}`, nil
	}
	return `{"error": {"class": "DeviceNotFound", "desc": "Device 'other' not found"}}`, nil
}

func (g guest) Event(ctx context.Context) (qmp.Event, error) {
	select {
	case e := <-g.events:
		return e, nil
	case <-ctx.Done():
		return qmp.Event{}, qmp.ErrClosed
	}
}

func (guest) Close() error { return nil }

// A NIC is plugged into a guest whose monitor listens on a socket. Other managers of this guest
// wait until the connection is closed.
func ExampleDial() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := qmp.Dial(ctx, "/run/P2/qmp.sock")
	if errors.Is(err, qmp.ErrBusy) {
		log.Fatal("somebody else has the monitor")
	}
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	queue, err := os.OpenFile("/dev/tap7", os.O_RDWR, 0) // of a macvtap
	if err != nil {
		log.Fatal(err)
	}
	defer queue.Close() // QEMU has a copy
	port, err := conn.FreePort(ctx)
	if err != nil {
		log.Fatal(err)
	}
	nic := qmp.NIC{ID: "net0", Queues: 1, Bus: port.Bus, Addr: port.Addr}
	if err := conn.Plug(ctx, nic, &qmp.Files{Queues: []*os.File{queue}}); err != nil {
		log.Fatal(err)
	}
}

// The peer is checked before anything is sent to it.
func ExampleDialer() {
	dialer := qmp.Dialer{
		CheckPeer: func(p qmp.Peer, _ *os.File) error {
			if p.UID != os.Getuid() {
				return fmt.Errorf("a process of user %d listens", p.UID)
			}
			return nil
		},
		Waiting: func() { log.Print("another client has the monitor") },
	}
	conn, err := dialer.Dial(context.Background(), "/run/P2/qmp.sock")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println(conn.Version())
}

// Commands go through the process that holds the monitor.
func ExampleThrough() {
	ctx := context.Background()
	conn, err := qmp.Through(ctx, guest{})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println(conn.Version())
	fmt.Println(conn.Name(ctx))
	// Output:
	// 7 2 22
	// P2 <nil>
}

// A command that the package has no method for.
func ExampleConn_Execute() {
	ctx := context.Background()
	conn, err := qmp.Through(ctx, guest{})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	var reply struct{ Name string }
	if err := conn.Execute(ctx, "query-name", nil, &reply); err != nil {
		log.Fatal(err)
	}
	fmt.Println(reply.Name)
	// Output: P2
}

// A refusal by QEMU has a class.
func ExampleError() {
	ctx := context.Background()
	conn, err := qmp.Through(ctx, guest{})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	err = conn.Execute(ctx, "device_del", map[string]any{"id": "other"}, nil)
	var refused *qmp.Error
	if errors.As(err, &refused) {
		fmt.Println(refused.Class)
	}
	fmt.Println(errors.Is(err, qmp.ErrDeviceNotFound))
	fmt.Println(err)
	// Output:
	// DeviceNotFound
	// true
	// device_del: Device 'other' not found
}

// Subscribing comes before the command that causes the event.
func ExampleConn_Subscribe() {
	ctx := context.Background()
	conn, err := qmp.Through(ctx, guest{make(chan qmp.Event, 1)})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	events := conn.Subscribe(1, "DEVICE_DELETED")
	defer events.Close()
	if err := conn.RequestUnplug(ctx, "n"); err != nil {
		log.Fatal(err)
	}
	e := <-events.C
	fmt.Println(e.Name, string(e.Data), events.Lost())
	// Output: DEVICE_DELETED {"device": "n", "path": "/machine/peripheral/n"} 0
}

// A NIC of two queues with vhost, for a QEMU that inherits its descriptors.
func ExampleNIC_Args() {
	nic := qmp.NIC{
		ID:      "net0",
		MAC:     net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1},
		HostMTU: 9000,
		Options: map[string]string{"rx_queue_size": "512"},
	}
	args, err := nic.Args([]int{3, 4}, []int{5, 6})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(strings.Join(args, "\n"))
	// Output:
	// -netdev
	// tap,id=net0-netdev,fds=3:4,vhostfds=5:6
	// -device
	// virtio-net-pci,id=net0,netdev=net0-netdev,mac=52:54:00:00:00:01,mq=on,vectors=6,host_mtu=9000,rx_queue_size=512
}
