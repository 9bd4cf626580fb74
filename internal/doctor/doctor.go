// Package doctor checks whether a machine is ready for guests' NICs: the helper and its privilege,
// its files, the kernel's devices, other programs on the machine that take hold of taps, and the
// bridges. It changes nothing.
package doctor

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
)

// Status is the severity of a finding.
type Status string

// OK needs no action. Warn may be intended, or works less well than it could. Fail does not work,
// or is not safe.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one finding.
type Check struct {
	Name   string `json:"name"` // what was checked: "helper", "bridge br0"
	Status Status `json:"status"`
	Text   string `json:"text"`           // what was found, and what that means
	Cure   string `json:"cure,omitempty"` // what to do about it; empty: nothing
}

// Machine is the machine to check.
type Machine struct {
	Root string    // the directory taken as the root directory; empty for /
	Self string    // the directory of vmnet
	Path []string  // the directories of $PATH
	NS   *netns.NS // whose bridges and settings; it stays the caller's
	// NetnsName is the name by which the user has named NS; empty for the host's own.
	NetnsName string
	// Networks is the directory of the files of networks; empty for config.DefaultDir.
	Networks string
}

// Look returns all findings. What cannot be checked is a finding, too.
func (m Machine) Look(ctx context.Context) []Check {
	return slices.Concat(
		m.helper(), m.bridgeConf(), m.policy(),
		m.tun(), m.vhost(), m.portSecurity(), m.packetPorts(),
		m.qemu(ctx), m.hook(ctx),
		m.netfilter(), m.networkManager(), m.networkd(), m.udev(),
		m.machineID(), m.watch(), m.bridges(), m.segments(ctx), m.networks(ctx), m.userNetworks(ctx), m.routed(ctx),
		m.openVSwitch(ctx),
		m.rates(ctx),
	)
}

// Failed reports whether any check failed.
func Failed(checks []Check) bool {
	return slices.ContainsFunc(checks, func(c Check) bool { return c.Status == Fail })
}

func ok(name, format string, args ...any) []Check {
	return []Check{{name, OK, fmt.Sprintf(format, args...), ""}}
}

func warn(name, cure, format string, args ...any) []Check {
	return []Check{{name, Warn, fmt.Sprintf(format, args...), cure}}
}

func fail(name, cure, format string, args ...any) []Check {
	return []Check{{name, Fail, fmt.Sprintf(format, args...), cure}}
}

// at returns the path under which a file of the machine is accessible.
func (m Machine) at(path string) string { return filepath.Join(m.Root, path) }

// maxFile bounds how much of one file is read, in bytes.
const maxFile = 1 << 20

func (m Machine) read(path string) (string, error) {
	f, err := procfd.OpenRegular(m.at(path))
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(text), err
}

// find returns the first executable file of that name in the directories.
func (m Machine) find(name string, dirs []string) (path string, found bool) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(m.at(path)); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}
