package inventory

import (
	"context"

	"vmnet/internal/ovs"
)

// UseOVS connects to the database with that socket, empty for the usual one, and runs f. Only root
// may connect: a privileged helper raises its privilege for that alone.
func (h *Host) UseOVS(ctx context.Context, path string, f func(*ovs.Conn) error) error {
	var c *ovs.Conn
	err := h.WithPrivilege(func() (err error) { c, err = ovs.Dial(ctx, path); return err })
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}
