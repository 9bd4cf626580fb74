package usernet

import (
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/child"
)

const pastaProgram = "pasta"

// A way is by which IP versions the host reaches other networks.
type way struct{ ip4, ip6 bool }

func (w way) any() bool { return w.ip4 || w.ip6 }

// String returns the versions, for people.
func (w way) String() string {
	switch {
	case w.ip4 && w.ip6:
		return "IPv4, IPv6"
	case w.ip4:
		return "IPv4"
	case w.ip6:
		return "IPv6"
	}
	return "none"
}

// hostWay returns the host's. Without a default route pasta does not start.
func hostWay() (w way, err error) {
	nl, err := rtnl.Open(nil)
	if err != nil {
		return w, err
	}
	defer nl.Close()
	routes, err := nl.Routes()
	for _, r := range routes {
		switch {
		case r.Dst.Bits() != 0 || r.Link == 0:
		case r.Dst.Addr().Is4():
			w.ip4 = true
		default:
			w.ip6 = true
		}
	}
	return w, err
}

// pastaArgs returns the arguments of pasta, less the process whose namespaces it joins. Guests
// reach nothing on the host's loopback interface. The namespace has other addresses than the host,
// so that guests reach the host by its own. pasta forwards nothing to the namespace: that of Debian
// 12 completes no connection from the host before the client has sent something.
func pastaArgs(w way) []string {
	args := []string{"--foreground", "--stderr", "--config-net", "--no-map-gw", "--ns-ifname", wan}
	if w.ip4 {
		args = append(args, "--address", inside4.Addr().String(), "--netmask", strconv.Itoa(inside4.Bits()),
			"--gateway", router4.String())
	} else {
		args = append(args, "--ipv6-only")
	}
	if w.ip6 {
		args = append(args, "--address", inside6.Addr().String(), "--gateway", router6.String())
	} else {
		args = append(args, "--ipv4-only")
	}
	return append(args, "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none")
}

// startPasta starts pasta for the namespaces of a process.
func startPasta(program string, args []string, pid int) (*child.Process, error) {
	cmd := exec.Command(program, append(slices.Clone(args), strconv.Itoa(pid))...)
	cmd.Dir, cmd.Env = "/", []string{"LC_ALL=C"}
	return child.Start(cmd, nil)
}

// pastaFailure is the error for a pasta that has ended, without what it says besides the reason.
func pastaFailure(p *child.Process) error {
	lines := strings.Split(strings.TrimSpace(p.Failure().Error()), "\n")
	return errors.New(lines[0] + " " + lines[len(lines)-1])
}
