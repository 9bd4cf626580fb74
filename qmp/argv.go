package qmp

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	cmdline "vmnet/internal/vmm/qemu"
)

// Args returns the NIC as arguments of a QEMU that inherits files by these numbers: -netdev and
// -device with their values. There is one vhost file for each queue, or none. The numbers stand for
// n's Queues and Vhost; its Netns and Label are only inherited and need no argument. fds= with a
// single number is the same as fd=, and numbers differ from getfd names by their first digit
// (net_init_tap and monitor_fd_param of QEMU).
func (n NIC) Args(queues, vhosts []int) ([]string, error) {
	all := n.queuesOver(len(queues))
	if err := n.validate(all, len(vhosts)); err != nil {
		return nil, err
	}
	for _, fd := range slices.Concat(queues, vhosts) {
		if fd < 0 {
			return nil, fmt.Errorf("%s: %d is not a file descriptor", n.ID, fd)
		}
	}
	device := n.device(all)
	for key := range device {
		if strings.ContainsAny(key, ",=") {
			return nil, fmt.Errorf("%s: device property %q cannot be written on a command line", n.ID, key)
		}
	}
	if !wellFormed(n.model()) {
		return nil, fmt.Errorf("%s: device model %q: a letter, then letters, digits, '-', '.' or '_'", n.ID, n.model())
	}
	var args []string
	if n.backend() == VhostUser {
		args = []string{
			"-chardev", "socket,id=" + ChardevID(n.ID) + ",path=" + cmdline.Escape(n.Socket) + ",server=on,wait=off",
		}
	}
	return append(args,
		"-netdev", optionText(n.netdevOver(fdNumbers(queues), fdNumbers(vhosts))),
		"-device", optionText(device),
	), nil
}

// optionOrder is that of a command line: first what QEMU wants first, without its key.
// Other properties follow by name.
var optionOrder = []string{
	"type", "driver", "id", "fds", "fd", "vhostfds", "netdev", "mac", "bus", "addr",
	"mq", "vectors", "host_mtu",
}

// optionText writes properties as the value of an option.
func optionText(properties map[string]any) string {
	rank := func(key string) int {
		if i := slices.Index(optionOrder, key); i >= 0 {
			return i
		}
		return len(optionOrder)
	}
	keys := slices.SortedFunc(maps.Keys(properties), func(a, b string) int {
		return cmp.Or(rank(a)-rank(b), strings.Compare(a, b))
	})
	for i, key := range keys {
		text := cmdline.Escape(optionValue(properties[key]))
		if i > 0 {
			text = key + "=" + text
		}
		keys[i] = text
	}
	return strings.Join(keys, ",")
}

func optionValue(value any) string {
	switch value {
	case true:
		return "on"
	case false:
		return "off"
	}
	return fmt.Sprint(value)
}

func fdNumbers(fds []int) string {
	numbers := make([]string, len(fds))
	for i, fd := range fds {
		numbers[i] = strconv.Itoa(fd)
	}
	return strings.Join(numbers, ":")
}
