package tapmgr_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"vmnet/bridge/brport"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// A running guest gets a NIC on br0, and loses it again.
func ExampleManager_Attach() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	guest := nic.Target{VM: "P2"} // QEMU was started with -name guest=P2
	err := tapmgr.In("", func(m *tapmgr.Manager) error {
		res, err := m.Attach(ctx, nic.Spec{
			Target: guest, NIC: "net1", Bridge: "br0", Port: brport.Settings{Isolated: true}, Queues: 2,
		})
		if err != nil {
			return err
		}
		fmt.Println(res.NIC.Interface, res.NIC.MAC)
		_, err = m.Detach(ctx, tapmgr.DetachSpec{Target: guest, NIC: "net1"})
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

// The NICs of all guests in the current network namespace.
func ExampleIn() {
	err := tapmgr.In("", func(m *tapmgr.Manager) error {
		nics, err := m.List(context.Background(), "")
		for _, n := range nics {
			fmt.Println(n.VM, n.ID, n.Interface, n.State)
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

// An error says which kind it is. A Spec is checked before anything is changed.
func ExampleIn_errors() {
	err := tapmgr.In("", func(m *tapmgr.Manager) error {
		_, err := m.Attach(context.Background(), nic.Spec{Target: nic.Target{VM: "P2"}, NIC: "eth 0", Bridge: "br0"})
		return err
	})
	fmt.Println(errors.Is(err, nic.ErrInvalid))
	fmt.Println(err)
	// Output:
	// true
	// NIC id "eth 0": want 1 to 12 of a-z, 0-9 and _
}
