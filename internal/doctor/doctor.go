// Package doctor looks whether a machine is ready for guests' NICs: at the
// helper and its right, its files, the kernel's devices, what else on the
// machine takes hold of taps, and the bridges. It reads and changes nothing.
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

// Status is how bad a finding is.
type Status string

// OK asks for nothing. Warn may be as it is meant, or works less well than it
// could. Fail does not work, or is not safe.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one finding.
type Check struct {
	Name   string `json:"name"` // what was looked at: "helper", "bridge br0"
	Status Status `json:"status"`
	Text   string `json:"text"`           // what was found, and what that means
	Cure   string `json:"cure,omitempty"` // what to do about it; empty where nothing is to be done
}

// Machine is what is looked at.
type Machine struct {
	Root string    // the folder that is taken for /; empty for /
	Self string    // the folder that vmnet is in
	Path []string  // the folders of $PATH
	NS   *netns.NS // whose bridges and settings; it stays the caller's
}

// Look returns all findings. What cannot be looked at is one, too.
func (m Machine) Look(ctx context.Context) []Check {
	return slices.Concat(
		m.helper(), m.bridgeConf(), m.policy(),
		m.tun(), m.vhost(), m.packetPorts(),
		m.qemu(ctx), m.hook(ctx),
		m.netfilter(), m.networkManager(), m.networkd(), m.udev(),
		m.machineID(), m.watch(), m.bridges(),
	)
}

// Failed tells whether any check failed.
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

// at is where a path of the machine is for us.
func (m Machine) at(path string) string { return filepath.Join(m.Root, path) }

// maxFile bounds what is read of one file.
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

// find returns the first of the folders' files of that name that can be executed by somebody.
func (m Machine) find(name string, folders []string) (path string, found bool) {
	for _, dir := range folders {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(m.at(path)); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}
