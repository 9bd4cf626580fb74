package vhost_test

import (
	"fmt"
	"log"

	"vmnet/vhost"
)

// A queue's packets are moved by the kernel where it has vhost-net.
func ExampleOpen() {
	f, err := vhost.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	features, err := vhost.Features(f)
	fmt.Printf("%#x %v\n", features, err)
}
