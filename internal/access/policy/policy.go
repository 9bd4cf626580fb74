// Package policy reads policy.yaml, which says which users may have which NICs from qemu-netup, and
// decides by it. docs/man/policy.yaml.5.md describes the file.
package policy

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/strictyaml"
)

// DefaultPath is the path of the file.
const DefaultPath = "/etc/vmnet/policy.yaml"

// maxQueues is how many queues a tap may have: MAX_TAP_QUEUES in the kernel's drivers/net/tun.c.
const maxQueues = 256

// defaultQueues is how many queues a NIC may have if its rule does not say.
const defaultQueues = 8

// DefaultBridge is where scripts put an interface that the policy does not mention.
const DefaultBridge = "br0"

// Policy is the content of a file. A nil Policy applies if there is no file: bridge.conf alone
// decides which bridges are allowed, and lowers, uplinks, VLANs and port settings other than
// isolated are not allowed.
type Policy struct {
	File string

	rules    []rule
	profiles map[string]Profile
	scripts  []script
	draft    error // why Load refuses the file
}

// Profile is a named group of settings.
type Profile struct {
	Bridge  string // may be empty in one that Policy.Profile returned
	Network string // or else its bridge; empty for none
	Port    brport.Settings
	OVSDB   string // socket of the database of the bridge, if it is one of Open vSwitch; empty: the usual one
	Queues  int    // 0: not set in the profile
}

// script says which profile an interface gets.
type script struct{ glob, profile string }

// Load reads a file that only root can have written, at a path that is root's. If it does not
// exist, the error matches fs.ErrNotExist with errors.Is, and a nil Policy applies. Any other error
// must lead to a denial.
func Load(path string) (*Policy, error) {
	p, err := load(path, procfd.OpenRoots)
	if err == nil && p.draft != nil {
		return nil, p.draft
	}
	return p, err
}

// LoadDraft reads a file for inspection, regardless of who wrote it. If Load would refuse the file,
// the first of its Warnings says so.
func LoadDraft(path string) (*Policy, error) { return load(path, procfd.OpenRegular) }

func load(path string, opener func(string) (*os.File, error)) (*Policy, error) {
	f, err := open(path, opener)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := strictyaml.Read(path, f)
	if err != nil {
		return nil, err
	}
	p, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	p.draft = trusted(path, info, 0)
	return p, nil
}

// open opens regular files only: it neither waits for the writer of a FIFO nor touches a device. A
// dangling symbolic link is an error, not a missing file: somebody wanted a policy.
func open(path string, opener func(string) (*os.File, error)) (*os.File, error) {
	f, err := opener(path)
	if errors.Is(err, procfd.ErrNotRegular) {
		return nil, fmt.Errorf("%s: it is not a regular file (replace it by one)", path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := os.Lstat(path); lerr == nil {
			return nil, fmt.Errorf("%s: it is a dangling symbolic link (correct or remove it)", path)
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w (everyone must be able to read it: chmod 0644)", err)
	}
	return f, err
}

// trusted reports whether a file with info could be written only by its owner, and uid owns it.
func trusted(path string, info fs.FileInfo, uid uint32) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != uid {
		return fmt.Errorf("%s: it does not belong to uid %d (chown %d %s)", path, uid, uid, path)
	}
	return strictyaml.OnlyOwnerWrites(path, info, "0644")
}

// Rules returns the number of rules, 0 for a nil Policy.
func (p *Policy) Rules() int {
	if p == nil {
		return 0
	}
	return len(p.rules)
}

// Profiles returns the names of all profiles, sorted. A nil Policy has no profiles.
func (p *Policy) Profiles() []string {
	var names []string
	if p != nil {
		for name := range p.profiles {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Profile returns the profile of that name.
func (p *Policy) Profile(name string) (Profile, error) {
	if p == nil {
		return Profile{}, fmt.Errorf("no profile %q: there is no %s (write it, with: profiles: {NAME: {bridge: br0}})",
			name, DefaultPath)
	}
	profile, ok := p.profiles[name]
	if !ok {
		return Profile{}, fmt.Errorf("no profile %q in %s (it has %s)", name, p.File, listed(p.Profiles()))
	}
	return profile, nil
}

// Script returns the profile that qemu-ifup applies to an interface; its Bridge is never empty.
func (p *Policy) Script(ifname string) Profile {
	var profile Profile
	if p != nil {
		i := slices.IndexFunc(p.scripts, func(s script) bool { return match(s.glob, ifname) })
		if i >= 0 {
			profile = p.profiles[p.scripts[i].profile]
		}
	}
	profile.Bridge = cmp.Or(profile.Bridge, profile.Network, DefaultBridge)
	return profile
}
