package main

import (
	"vmnet/internal/access/bridgeconf"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/policy"
	"vmnet/internal/backend"
)

// The paths of the files; a distribution's build may set others with the linker.
var (
	aclPath    = bridgeconf.DefaultPath
	policyPath = policy.DefaultPath
)

func files() gate.Files { return gate.Files{ACL: aclPath, Policy: policyPath} }

func (a *app) openGate(m *backend.Maker) (*gate.Gate, error) {
	return gate.Open(files(), a.p.Caller, m)
}
