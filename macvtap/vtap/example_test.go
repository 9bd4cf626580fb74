package vtap_test

import (
	"fmt"

	"vmnet/macvtap/vtap"
)

func ExampleModes() {
	fmt.Println(vtap.Modes(vtap.IPVtap))
	// Output: [l2 l3]
}

// An ipvtap has no MAC of its own, and receives only what is sent to its addresses.
func ExampleConfig_Validate() {
	err := vtap.Config{Kind: vtap.IPVtap, Mode: "l2"}.Validate()
	fmt.Println(err)
	// Output: an ipvtap needs an IP address: the kernel delivers to it by address
}
