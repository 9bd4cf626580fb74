package vport

import (
	"fmt"
	"net"
)

// A Segment is a network, other than the switch, to which a port's device is connected. Two ports
// on one segment make a loop.
type Segment struct {
	Key  string `json:"key"`  // the DeviceKey of the device that represents it
	Name string `json:"name"` // name of that device, for messages
}

// DeviceKey identifies a device in any network namespace by its index and address. Two devices with
// the same index and address could not be on one switch anyway.
func DeviceKey(index int, mac net.HardwareAddr) string { return fmt.Sprintf("%d/%s", index, mac) }
