package nic_test

import (
	"errors"
	"fmt"

	"vmnet/bridge/brport"
	"vmnet/tapmgr/nic"
)

// What is left out has a default, which WithDefaults shows.
func ExampleSpec() {
	s := nic.Spec{Target: nic.Target{VM: "P2"}, Bridge: "br0", Port: brport.Settings{VLAN: 7}}
	fmt.Println(s.Validate())
	s = s.WithDefaults()
	fmt.Println(s.NIC, s.Model, s.Vhost)
	// Output:
	// <nil>
	// net0 virtio-net-pci auto
}

func ExampleSpec_Validate() {
	err := nic.Spec{Target: nic.Target{VM: "P2"}, Bridge: "br0", Port: brport.Settings{VLAN: 5000}}.Validate()
	fmt.Println(errors.Is(err, nic.ErrInvalid))
	// Output: true
}
