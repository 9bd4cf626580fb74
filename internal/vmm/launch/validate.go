package launch

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/vmm/qemu"
)

// validate checks everything that qmp.NIC.Args does not check.
func (c Config) validate(argv []string) error {
	switch {
	case len(argv) == 0 || argv[0] == "":
		return errors.New("there is no program to run (give it after --)")
	case len(argv) > maxArguments:
		return fmt.Errorf("%d arguments: at most %d are possible", len(argv), maxArguments)
	case placeholder(argv) > 0 && slices.Contains(argv[placeholder(argv)+1:], Placeholder):
		return fmt.Errorf("%s occurs twice: the NICs can go to one place (leave one out)", Placeholder)
	case c.Place != "" && !slices.Contains(Places(), c.Place):
		return fmt.Errorf("place %q: want %s", c.Place, strings.Join(Places(), ", "))
	case c.SparePorts < 0 || c.SparePorts > maxPorts:
		return fmt.Errorf("%d spare ports: 0 to %d are possible", c.SparePorts, maxPorts)
	case len(c.Monitor) > maxSocket:
		return fmt.Errorf("the monitor's path %s is longer than the %d bytes of a socket's (choose a shorter one)", c.Monitor, maxSocket)
	case strings.Contains(c.Monitor, "="):
		return fmt.Errorf("the monitor's path %s holds a '=', which QEMU takes for an option (choose another one)", c.Monitor)
	case len(c.NICs) == 0 || len(c.NICs) > maxNICs:
		return fmt.Errorf("%d NICs: 1 to %d are possible", len(c.NICs), maxNICs)
	}
	return errors.Join(c.uniqueNames(), c.uniqueFDs())
}

// Places are the values of Config.Place.
func Places() []string {
	places := []string{string(qemu.PlaceAuto)}
	for _, p := range qemu.Places {
		places = append(places, string(p))
	}
	return places
}

func (c Config) uniqueNames() error {
	seen := map[string]bool{}
	for _, n := range c.NICs {
		if n.Name == "" || seen[n.Name] {
			return fmt.Errorf("two NICs are called %q, or one has no name (give each its own --nic)", n.Name)
		}
		seen[n.Name] = true
	}
	return nil
}

// uniqueFDs also refuses the standard streams, since a forgotten number is 0.
func (c Config) uniqueFDs() error {
	seen := map[int]bool{}
	for _, n := range c.NICs {
		fds := slices.Concat(n.Queues, n.Vhosts)
		for _, fd := range []int{n.Netns, n.Label} {
			if fd != 0 {
				fds = append(fds, fd)
			}
		}
		for _, fd := range fds {
			if fd < 3 || seen[fd] {
				return fmt.Errorf("NIC %s: file descriptor %d is a standard stream or used twice", n.Name, fd)
			}
			seen[fd] = true
		}
	}
	return nil
}
