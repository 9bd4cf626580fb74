package goqemu_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"vmnet/qmp"
	"vmnet/qmp/goqemu"
)

// The generated commands of go-qemu work over a monitor's socket, with a deadline.
func ExampleNew() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := qmp.Dial(ctx, "/run/P2/qmp.sock")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	monitor := goqemu.New(ctx, conn)
	defer monitor.Disconnect()
	filters, err := raw.NewMonitor(monitor).QueryRxFilter(nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range filters {
		fmt.Println(f.Name, f.MainMac, f.Multicast)
	}
}

// QEMU receives a file of ours under a name.
func ExampleMonitor_RunWithFile() {
	ctx := context.Background()
	conn, err := qmp.Dial(ctx, "/run/P2/qmp.sock")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	monitor := goqemu.New(ctx, conn)
	defer monitor.Disconnect()
	f, err := os.Open("/dev/vhost-net")
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close() // QEMU has a copy
	if _, err := monitor.RunWithFile([]byte(`{"execute": "getfd", "arguments": {"fdname": "vhost0"}}`), f); err != nil {
		log.Fatal(err)
	}
}

// guest stands for a process that can give a QEMU commands.
type guest struct{}

func (guest) Command(_ context.Context, command string, _ *os.File) (string, error) {
	if command == `{"execute":"query-version"}` {
		return `{"return": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}}`, nil
	}
	return `{"return": {"name": "P2"}}`, nil
}

func (guest) Event(ctx context.Context) (qmp.Event, error) {
	<-ctx.Done()
	return qmp.Event{}, qmp.ErrClosed
}

func (guest) Close() error { return nil }

// They work just as well through a Relay.
func ExampleNew_relay() {
	ctx := context.Background()
	conn, err := qmp.Through(ctx, guest{})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	monitor := goqemu.New(ctx, conn)
	defer monitor.Disconnect()
	name, err := raw.NewMonitor(monitor).QueryName()
	fmt.Println(*name.Name, err)
	// Output: P2 <nil>
}
