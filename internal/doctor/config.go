package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"vmnet/internal/access/bridgeconf"
	"vmnet/internal/access/policy"
)

// bridgeConf reads QEMU's list of bridges as the helper will.
func (m Machine) bridgeConf() []Check {
	const name = "bridge.conf"
	var skipped []error
	absent := warn(name, "write it: allow BRIDGE; see bridge.conf(5)",
		"there is no %s: only root may have NICs on bridges", bridgeconf.DefaultPath)
	checks := m.rules(name, bridgeconf.DefaultPath, absent, func(path string) error {
		acl, err := bridgeconf.Read(path)
		if err == nil {
			skipped = acl.Skipped
		}
		return err
	})
	for _, err := range skipped {
		checks = append(checks, warn(name, "make it readable for its users, or remove the include",
			"skipped: %v", err)...)
	}
	return checks
}

// policy reads the policy as the helper will.
func (m Machine) policy() []Check {
	const name = "policy.yaml"
	var warnings []string
	absent := ok(name,
		"there is no %s: users other than root may have only the bridges in bridge.conf, and no parent devices, uplinks or VLANs",
		policy.DefaultPath)
	checks := m.rules(name, policy.DefaultPath, absent, func(path string) error {
		p, err := policy.Load(path)
		if err != nil {
			return err
		}
		warnings = p.Warnings()
		if info, err := os.Stat(path); err == nil && info.Mode()&0o004 == 0 {
			return fmt.Errorf("%s: mode %04o: users cannot read it, so everything is denied to them (chmod 0644)",
				policy.DefaultPath, unixMode(info.Mode()))
		}
		return nil
	})
	for _, text := range warnings {
		checks = append(checks, warn(name, "", "%s", text)...)
	}
	return checks
}

// rules checks a file that restricts the helper; absent is the finding for a missing file.
func (m Machine) rules(name, path string, absent []Check, read func(path string) error) []Check {
	info, err := os.Stat(m.at(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent
	case errors.Is(err, fs.ErrPermission):
		return warn(name, "run this as root", "%s: you may not look at it", path)
	case err != nil:
		return fail(name, "", "%v", err)
	}
	if wrong, cure := m.unsafe(path); wrong != "" {
		return fail(name, cure, "%s: a user who can write it can allow everything", wrong)
	}
	err = read(m.at(path))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return warn(name, "run this as root", "%s, mode %04o: you may not read it", path, unixMode(info.Mode()))
	case err != nil:
		return fail(name, "correct it: until then the helper denies what it would allow", "%v", err)
	}
	return ok(name, "%s can be read, mode %04o", path, unixMode(info.Mode()))
}
