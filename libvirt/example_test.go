package libvirt_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
)

// Lists the interfaces of all running domains.
func ExampleDial() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := libvirt.Dial(ctx, libvirt.System)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	domains, err := c.ListDomains(ctx, libvirt.ListActive)
	if err != nil {
		log.Fatal(err)
	}
	for _, dom := range domains {
		text, err := c.XML(ctx, dom, 0)
		if errors.Is(err, libvirt.ErrNoDomain) {
			continue // it has ended in the meantime
		} else if err != nil {
			log.Fatal(err)
		}
		def, err := domainxml.Parse(text)
		if err != nil {
			log.Fatal(err)
		}
		for _, nic := range def.Interfaces {
			fmt.Println(dom.Name, nic.Type, nic.Target, nic.MAC)
		}
	}
}

// Errors match the kind of failure.
func ExampleDial_noDaemon() {
	_, err := libvirt.Dial(context.Background(), "/nowhere/libvirt-sock")
	fmt.Println(errors.Is(err, libvirt.ErrNoConnection))
	// Output: true
}

// Plugs an existing tap into a running guest, and waits until libvirt reports the device.
func ExampleConn_AttachDevice() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := libvirt.Dial(ctx, libvirt.System)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	dom, err := c.LookupByName(ctx, "web1")
	if err != nil {
		log.Fatal(err)
	}
	added, err := c.Subscribe(ctx, &dom, 8, libvirt.DeviceAdded)
	if err != nil {
		log.Fatal(err)
	}
	defer added.Close()
	nic := domainxml.Ethernet{Tap: "tap0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Alias: "ua-nic1"}
	element, err := nic.XML()
	if err != nil {
		log.Fatal(err)
	}
	if err := c.AttachDevice(ctx, dom, element, libvirt.AffectLive); err != nil {
		log.Fatal(err)
	}
	for {
		select {
		case e, open := <-added.C:
			if !open {
				log.Fatal(added.Err())
			}
			if e.Device == nic.Alias {
				return
			}
		case <-ctx.Done():
			log.Fatal(ctx.Err())
		}
	}
}

// Passes a file descriptor to a guest's QEMU.
func ExampleConn_MonitorCommandWithFiles() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := libvirt.Dial(ctx, libvirt.System)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	dom, err := c.LookupByName(ctx, "web1")
	if err != nil {
		log.Fatal(err)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	const command = `{"execute":"getfd","arguments":{"fdname":"null"}}`
	reply, received, err := c.MonitorCommandWithFiles(ctx, dom, command, file)
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range received {
		_ = f.Close()
	}
	fmt.Println(reply)
}
