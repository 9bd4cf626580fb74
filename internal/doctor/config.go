package doctor

import (
	"errors"
	"io/fs"
	"os"

	"vmnet/internal/bridgeconf"
)

// policyFile says who may have what NICs; see policy.yaml(5).
const policyFile = "/etc/vmnet/policy.yaml"

// bridgeConf reads QEMU's list of bridges as the helper will.
func (m Machine) bridgeConf() []Check {
	const name = "bridge.conf"
	var skipped []error
	absent := warn(name, "write it: allow BRIDGE; see bridge.conf(5)", "there is no %s: others than root may have NICs on no bridge", bridgeconf.DefaultPath)
	checks := m.rules(name, bridgeconf.DefaultPath, absent, func(path string) error {
		acl, err := bridgeconf.Read(path)
		if err == nil {
			skipped = acl.Skipped
		}
		return err
	})
	for _, err := range skipped {
		checks = append(checks, warn(name, "make it readable for whom it is meant, or take the include out", "passed over: %v", err)...)
	}
	return checks
}

// policy reads who may have what, as the helper will.
func (m Machine) policy() []Check {
	const name = "policy.yaml"
	absent := ok(name, "there is no %s: bridge.conf alone says which bridges others than root may have, and they may have no network cards and no VLANs", policyFile)
	return m.rules(name, policyFile, absent, func(path string) error {
		_, err := os.ReadFile(path)
		return err
	})
}

// rules looks at a file that says what the helper allows; absent is the finding where there is none.
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
		return fail(name, cure, "%s: who can write it, can allow themselves everything", wrong)
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
