package backend

import (
	"errors"
	"io/fs"

	"vmnet/internal/inventory"
	"vmnet/tapmgr/nic"
)

// Prepared reads the device back.
func (h *NIC) Prepared() (nic.Result, error) {
	l, err := h.m.NL.Link(h.Device.InterfaceName())
	if errors.Is(err, fs.ErrNotExist) { // a dry run
		return h.Result(nil, true), nil
	}
	if err != nil {
		return nic.Result{}, err
	}
	return h.Result(&inventory.Device{Link: l, Want: h.Record, MasterName: h.m.MasterName(l)}, true), nil
}
