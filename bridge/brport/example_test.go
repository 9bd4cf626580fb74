package brport_test

import (
	"fmt"

	"vmnet/bridge/brport"
)

func ExampleParse() {
	s, err := brport.Parse("trunk:7,2-4;native:1;isolated")
	fmt.Println(s, s.Native, s.Isolated, err)
	// Output: trunk:2-4,7;native:1;isolated 1 true <nil>
}

func ExampleParseVLANs() {
	vlans, err := brport.ParseVLANs("7,2-4,3-5")
	fmt.Println(brport.FormatVLANs(vlans), err)
	// Output: 2-5,7 <nil>
}
