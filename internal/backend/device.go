package backend

import (
	"context"
	"os"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// device is the host's half of a NIC while it is being attached: one for each way in which a
// guest's frames can leave its VMM.
type device interface {
	// Plan reads what the steps need and changes nothing. It fills in what the
	// record says of this side, and the guest's MAC where that is not free.
	Plan(ctx context.Context, r *nic.Record) error
	// maxMTU is the most bytes that it carries; plan has been called.
	maxMTU() int
	// bridgeLink is the kernel's bridge that it is put on; nil for none. plan has been called.
	bridgeLink() *rtnl.Link
	// InterfaceName is the device's; plan has been called.
	InterfaceName() string
	// steps make the device with that many queues, ready for the guest. alias is set before
	// the first fd can leave us. pid is the VMM's.
	steps(pid int, alias string, queues int) []step.Step
	// queues are the open queues, none before the steps; they stay this side's.
	queues() []*os.File
	// netns is the namespace to hand along; nil for none.
	netns() *os.File
	// label is the file to hand along that tells what the NIC is, where no link does; nil for none.
	label() *os.File
	// Close closes our copies. Without a VMM's the device goes.
	Close() error
	// Verify reads the device back when the VMM has it, and sets its final alias.
	Verify(ctx context.Context, pid int, alias string) (*inventory.Device, error)
}

func (s *bridgeTap) bridgeLink() *rtnl.Link { return s.br }

func (s *bridgeTap) InterfaceName() string { return s.name }

func (s *bridgeTap) label() *os.File { return nil }

func (s *macvtapDevice) bridgeLink() *rtnl.Link { return nil }

func (s *macvtapDevice) InterfaceName() string { return s.name }

func (s *macvtapDevice) label() *os.File { return nil }
