package testpmd

import (
	"fmt"
	"net"
)

// Guest is the device of a virtio-net guest, whose frontend is testpmd itself.
type Guest struct {
	Path    string // of the backend's socket
	Listens bool   // at Path, and a backend connects: again whenever it is gone
	MAC     net.HardwareAddr
	Ring    int  // descriptors of each of its rings; 0 means 256
	Single  bool // a frame needs one buffer: no mergeable buffers
}

// Device returns the argument of --vdev for the device with that number.
func (g Guest) Device(n int) string {
	ring, server, merges := g.Ring, 0, 1
	if ring == 0 {
		ring = 256
	}
	if g.Listens {
		server = 1
	}
	if g.Single {
		merges = 0
	}
	return fmt.Sprintf("net_virtio_user%d,path=%s,server=%d,queue_size=%d,mrg_rxbuf=%d,mac=%s",
		n, g.Path, server, ring, merges, g.MAC)
}
