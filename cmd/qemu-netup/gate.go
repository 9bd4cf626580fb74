package main

import (
	"vmnet/internal/bridgeconf"
	"vmnet/internal/gate"
	"vmnet/internal/policy"
	"vmnet/tapmgr"
)

// Where the files are; a distribution's build may have the linker say otherwise.
var (
	aclPath    = bridgeconf.DefaultPath
	policyPath = policy.DefaultPath
)

func files() gate.Files { return gate.Files{ACL: aclPath, Policy: policyPath} }

// opened is a gate as the forms here use it.
type opened struct {
	*gate.Gate
	policy *policy.Policy
}

func (a *app) openGate(m *tapmgr.Manager) (*opened, error) {
	g, err := gate.Open(files(), a.p.Caller, m)
	if err != nil {
		return nil, err
	}
	return &opened{g, g.Policy()}, nil
}

const aclForUsers = gate.ForUsers

func (g *opened) allow(always bool, requests ...policy.Request) error {
	return g.Allow(always, requests...)
}

func (g *opened) still() error { return g.Still() }
