package watch

import (
	"context"
	"encoding/json"
	"fmt"
	"net"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"vmnet/macvtap/vtap"
	"vmnet/qmp"
	"vmnet/qmp/goqemu"
)

// maxFilters bounds the receive filters of a guest. A short text makes a long list, and a QEMU that
// its guest has taken over can send any.
const maxFilters = 256

// filtersBy asks a QEMU for the receive filters of all NICs that have one.
func filtersBy(ctx context.Context, c *qmp.Conn) ([]raw.RxFilterInfo, error) {
	m := goqemu.New(ctx, c)
	defer m.Disconnect()
	return raw.NewMonitor(bounded{m}).QueryRxFilter(nil)
}

// bounded refuses replies with lists of more than maxFilters elements.
type bounded struct{ *goqemu.Monitor }

func (b bounded) Run(command []byte) ([]byte, error) {
	reply, err := b.Monitor.Run(command)
	if err != nil {
		return nil, err
	}
	var list struct {
		Return [maxFilters + 1]json.RawMessage
	}
	if err := json.Unmarshal(reply, &list); err != nil {
		return nil, fmt.Errorf("query-rx-filter: %w: %w", qmp.ErrProtocol, err)
	}
	if list.Return[maxFilters] != nil {
		return nil, fmt.Errorf("query-rx-filter: %w: more than %d filters", qmp.ErrProtocol, maxFilters)
	}
	return reply, nil
}

// groupsOf returns what a driver wants to receive: groups, or all multicast. It skips addresses in
// the list that are not multicast, since the guest wrote the list.
func groupsOf(f raw.RxFilterInfo) (groups []net.HardwareAddr, all bool) {
	switch {
	case f.Promiscuous, f.Multicast == raw.RxStateAll, f.MulticastOverflow, len(f.MulticastTable) > vtap.MaxGroups:
		return nil, true
	case f.Multicast == raw.RxStateNone:
		return nil, false
	}
	for _, text := range f.MulticastTable {
		if mac, err := net.ParseMAC(text); err == nil && len(mac) == 6 && mac[0]&1 != 0 {
			groups = append(groups, mac)
		}
	}
	return groups, false
}
