package bridge_test

import (
	"fmt"
	"log"

	"vmnet/bridge"
)

// A bridge, and a tap on it as a port that carries VLAN 7.
func ExampleOpen() {
	host, err := bridge.Open("") // the current network namespace
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	if _, err := host.Ensure(bridge.Config{Name: "br0"}); err != nil {
		log.Fatal(err)
	}
	cfg, err := bridge.ParsePortConfig("vlan=7 isolated")
	if err != nil {
		log.Fatal(err)
	}
	if err := host.AddPort("br0", "tap0", cfg); err != nil {
		log.Fatal(err)
	}
}

func ExampleParseVLANs() {
	vlans, err := bridge.ParseVLANs("7,2-4,3-5")
	fmt.Println(bridge.FormatVLANs(vlans), err)
	// Output: 2-5,7 <nil>
}
