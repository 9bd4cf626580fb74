package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vmnet/tapmgr/nic"
)

// ShowNIC returns details of one NIC of a guest. id is its name or that of its host interface; an
// empty one means the guest's only NIC.
func (m *Manager) ShowNIC(ctx context.Context, vm, id string) (Detail, error) {
	all, err := m.Show(ctx, vm)
	if err != nil {
		return Detail{}, err
	}
	return only(all, id, func(d Detail) nic.NIC { return d.NIC })
}

// only returns the one of a guest's NICs that id names, as ShowNIC says.
func only[T any](all []T, id string, nicOf func(T) nic.NIC) (one T, err error) {
	var ids []string
	found := 0
	for _, candidate := range all {
		n := nicOf(candidate)
		ids = append(ids, n.ID)
		if id == "" || n.ID == id || n.Interface == id {
			one = candidate
			found++
		}
	}
	switch {
	case found == 1:
		return one, nil
	case len(all) == 0:
		err = errors.New("there is no such guest with a NIC (vmnet list shows all)")
	case found == 0:
		err = fmt.Errorf("the guest has no such NIC, only %s", strings.Join(ids, ", "))
	case id == "":
		err = fmt.Errorf("the guest has several NICs: name one of %s", strings.Join(ids, ", "))
	default:
		err = errors.New("several guests say that they have it (vmnet list shows them)")
	}
	var none T
	return none, err
}
