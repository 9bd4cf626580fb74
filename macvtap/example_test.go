package macvtap_test

import (
	"fmt"

	"vmnet/macvtap"
)

func ExampleModes() {
	fmt.Println(macvtap.Modes(macvtap.IPVtap))
	// Output: [l2 l3]
}
