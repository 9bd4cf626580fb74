package vhost_test

import (
	"fmt"
	"log"
	"os"

	"vmnet/vhost"
)

// One fd for each queue pair of a NIC, where the kernel has vhost-net.
func ExampleOpen() {
	f, err := vhost.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	features, err := vhost.Features(f)
	fmt.Printf("%#x %v\n", features, err)
}

// A process that has no queue with vhost-net.
func ExampleFDs() {
	fmt.Println(vhost.FDs(os.Getpid()))
	// Output: []
}
