package bridge_test

import (
	"log"

	"vmnet/bridge"
	"vmnet/bridge/brport"
)

// A bridge, and a tap on it as a port that carries VLAN 7.
func ExampleOpen() {
	host, err := bridge.Open("") // the current network namespace
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	if _, err := host.Ensure(bridge.Config{Name: "br0", VLANFiltering: true}); err != nil {
		log.Fatal(err)
	}
	if err := host.AddPort("br0", "tap0", brport.Settings{VLAN: 7, Isolated: true}); err != nil {
		log.Fatal(err)
	}
}
