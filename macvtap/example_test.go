package macvtap_test

import (
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"

	"vmnet/macvtap"
	"vmnet/macvtap/vtap"
	"vmnet/qmp"
)

// A macvtap on eth0, until the Device is closed.
func ExampleHost_Create() {
	host, err := macvtap.Open("") // the current network namespace
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	dev, err := host.Create("eth0", vtap.Config{
		Kind: vtap.Macvtap, Name: "P2-net0", Mode: "bridge", MAC: net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	if err := dev.Up(); err != nil {
		log.Fatal(err)
	}
	info, err := dev.Info()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Name, info.Mode, "on", info.Parent, info.MAC, info.Up)
}

// QEMU gets a macvtap with one queue, and is the only process that keeps it: the kernel removes the
// device when QEMU ends.
func ExampleDevice_Queues() {
	host, err := macvtap.Open("")
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	mac := net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}
	dev, err := host.Create("eth0", vtap.Config{Kind: vtap.Macvtap, Name: "P2-net0", Mode: "bridge", MAC: mac})
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	if err := dev.OpenQueue(); err != nil {
		log.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		log.Fatal(err)
	}
	const queue = 3 // the number of the first of ExtraFiles in QEMU
	args, err := qmp.NIC{ID: "net0", MAC: mac}.Args([]int{queue}, nil)
	if err != nil {
		log.Fatal(err)
	}
	qemu := exec.Command("qemu-system-x86_64", append(args, "-m", "1G", "-drive", "file=P2.qcow2")...)
	qemu.ExtraFiles = dev.Queues()
	qemu.Stderr = os.Stderr
	if err := qemu.Start(); err != nil {
		log.Fatal(err)
	}
	if err := dev.Close(); err != nil { // QEMU has a copy of the queue
		log.Fatal(err)
	}
	if err := qemu.Wait(); err != nil {
		log.Fatal(err)
	}
}
