package bridge_test

import (
	"log"

	"vmnet/bridge"
	"vmnet/bridge/brport"
)

// A bridge, and a tap on it whose guest reaches no other isolated port.
func ExampleOpen() {
	host, err := bridge.Open("") // the current network namespace
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	if _, err := host.Ensure(bridge.Config{Name: "br0"}); err != nil {
		log.Fatal(err)
	}
	if err := host.AddPort("br0", "tap0", brport.Settings{Isolated: true}); err != nil {
		log.Fatal(err)
	}
}
