package guest

import (
	"errors"
	"net"
	"time"

	foreign "github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"
	"github.com/google/go-cmp/cmp"

	"vmnet/qmp"
	"vmnet/qmp/goqemu"
)

// foreignClient has go-qemu's own client of libvirt read the same as our relay.
func (r *relayed) foreignClient() {
	_, c := r.dial()
	m := goqemu.New(r.within(60*time.Second), c)
	defer m.Disconnect()
	socket, err := net.DialTimeout("unix", r.virt.Socket(), 20*time.Second)
	if err != nil {
		r.Fatal(err)
	}
	theirs := foreign.NewLibvirtRPCMonitor(r.g.Name, socket)
	if err := theirs.Connect(); err != nil {
		r.Fatal(err)
	}
	defer socket.Close() // go-libvirt leaves it open
	defer theirs.Disconnect()
	for name, query := range map[string]func(*raw.Monitor) (any, error){
		"name":              func(m *raw.Monitor) (any, error) { return m.QueryName() },
		"version":           func(m *raw.Monitor) (any, error) { return m.QueryVersion() },
		"status":            func(m *raw.Monitor) (any, error) { return m.QueryStatus() },
		"devices":           func(m *raw.Monitor) (any, error) { return m.QomList("/machine/peripheral") },
		"device properties": func(m *raw.Monitor) (any, error) { return m.DeviceListProperties("virtio-net-pci") },
		"filters":           func(m *raw.Monitor) (any, error) { return m.QueryRxFilter(nil) },
		"no such object":    func(m *raw.Monitor) (any, error) { return m.QomList("/nowhere") },
	} {
		got, err := query(raw.NewMonitor(m))
		want, errWant := query(raw.NewMonitor(theirs))
		if diff := cmp.Diff(want, got); diff != "" {
			r.Errorf("%s (-go-qemu +ours):\n%s", name, diff)
		}
		var refused *qmp.Error
		if (err == nil) != (errWant == nil) || err != nil && !errors.As(err, &refused) {
			r.Errorf("%s: %v, go-qemu has %v", name, err, errWant)
		}
	}
}
