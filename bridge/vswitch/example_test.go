package vswitch_test

import (
	"fmt"
	"os"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
)

// Two guests on sockets exchange a broadcast.
func Example() {
	sw := vswitch.New(vswitch.Config{})
	defer sw.Close()
	var guests []*os.File // a QEMU takes such a file: -netdev dgram
	for _, name := range []string{"a", "b"} {
		wire, guest, err := vswitch.SocketPair(1500)
		if err != nil {
			fmt.Println(err)
			return
		}
		defer guest.Close()
		cfg := vport.Config{MaxAddresses: 256, Storm: vport.GuestStorm(vport.GuestFrames)}
		if _, err := sw.AddPort(name, wire, cfg); err != nil {
			fmt.Println(err)
			return
		}
		guests = append(guests, guest)
	}

	frame := make([]byte, 60)
	copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5})
	_, _ = guests[0].Write(frame)
	n, err := guests[1].Read(make([]byte, 1514))
	fmt.Println(n, err)
	for _, e := range sw.FDB().Dump() {
		fmt.Println(e.Key.MAC(), "is behind port", sw.Ports()[e.Port].Name())
	}
	// Output:
	// 60 <nil>
	// 02:00:00:00:00:01 is behind port a
}
