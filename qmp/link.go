package qmp

import "context"

// SetLinkCommand is the monitor command of [Conn.SetLink], as it is sent.
func SetLinkCommand(netdev string, up bool) string {
	return commandText("set_link", linkArgs(netdev, up))
}

// SetLink sets whether the driver of a netdev's NIC sees a carrier (set_link in qapi/net.json).
// QEMU drops the frames of both directions while it does not. By the name of the netdev, QEMU sets
// both that and its device, if there is one; by that of the device, the device alone (qmp_set_link
// in net/net.c).
func (c *Conn) SetLink(ctx context.Context, netdev string, up bool) error {
	return c.Execute(ctx, "set_link", linkArgs(netdev, up), nil)
}

func linkArgs(netdev string, up bool) map[string]any { return map[string]any{"name": netdev, "up": up} }

// AnnounceSelf has QEMU send RARP requests from a NIC, and a virtio driver that can announce itself
// do so (announce-self in qapi/net.json, since QEMU 4.0; VIRTIO_NET_F_GUEST_ANNOUNCE): five times
// within two seconds. It returns at once.
func (c *Conn) AnnounceSelf(ctx context.Context, device string) error {
	return c.Execute(ctx, "announce-self", map[string]any{
		"initial": 20, "max": 550, "rounds": 5, "step": 100, "interfaces": []string{device}, "id": device,
	}, nil)
}
