package launch

import (
	"encoding/json"

	"vmnet/internal/cli/console"
)

// description is the content of VMNET_JSON. Its keys are stable.
type description struct {
	VM   string    `json:"vm"`
	NICs []nicJSON `json:"nics"`
}

type nicJSON struct {
	ID        string `json:"id"`
	Interface string `json:"interface"`
	Type      string `json:"type"`
	Source    string `json:"source"`
	MAC       string `json:"mac"` // empty: the VMM chooses
	MTU       int    `json:"mtu"`
	Queues    []int  `json:"queues"`
	Vhosts    []int  `json:"vhosts"`
	Netns     *int   `json:"netns"` // null: none
	NetdevID  string `json:"netdev_id"`
	DeviceID  string `json:"device_id"`
}

// environment describes the NICs to programs that are not QEMU.
func (c Config) environment(name string, args []string) []string {
	d := description{VM: name}
	for _, n := range c.NICs {
		one := nicJSON{
			ID: n.Name, Interface: n.Interface, Type: n.Type, Source: n.Source, MAC: n.Device.MAC.String(), MTU: n.MTU,
			Queues: append([]int{}, n.Queues...), Vhosts: append([]int{}, n.Vhosts...), // [], not null
			NetdevID: netdevID(n.Device), DeviceID: n.Device.ID,
		}
		if n.Netns != 0 {
			one.Netns = &n.Netns
		}
		d.NICs = append(d.NICs, one)
	}
	text, _ := json.Marshal(d) // strings and numbers always marshal
	return []string{"VMNET_ARGS=" + console.Quote(args), "VMNET_JSON=" + string(text)}
}
