package network

import (
	"context"
	"fmt"
	"slices"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/firewall"
	"vmnet/internal/network/integrate"
	"vmnet/internal/network/nft"
	"vmnet/step"
)

// integration is how a network stands with the other firewalls of the host.
type integration struct {
	lacks []integrate.Rule // rules that they should have
	keeps []integrate.Rule // rules that they should not have any more
	err   error            // why that is not known
}

// firewalls returns the host's firewalls, as they are now.
func (m *Manager) firewalls(rules *nft.Ruleset, legacy []string) *integrate.Host {
	run := m.Firewall
	if run == nil {
		run = integrate.In(m.NS)
	}
	return &integrate.Host{Ruleset: rules, Legacy: slices.Contains(legacy, "filter"), Run: run}
}

func compareIntegration(ctx context.Context, h *integrate.Host, n *config.Network) (i integration) {
	i.lacks, i.keeps, i.err = h.Compare(ctx, n)
	return i
}

func (i integration) differences(add func(what, want, is string)) {
	for _, r := range i.lacks {
		add("integration", r.Text, "")
	}
	for _, r := range i.keeps {
		add("integration", "", r.Text)
	}
	if i.err != nil {
		add("integration", "a firewall that answers", i.err.Error())
	}
}

// integrationSteps have other firewalls let a network's traffic pass, or take that back. The
// bridge's alias says before that there may be such rules.
func (m *Manager) integrationSteps(n *config.Network, st *state) (steps []step.Step, err error) {
	if st.integration.err != nil {
		return nil, st.integration.err
	}
	for i, r := range st.lacks {
		steps = append(steps, step.Step{
			Name: fmt.Sprintf("integrate %s %d", r.Owner, i+1), Text: r.Text, Do: r.Add, Undo: r.Remove,
		})
	}
	for i, r := range st.keeps {
		s := leaveStep(i, r)
		s.Undo = r.Add
		steps = append(steps, s)
	}
	if st.record.integrated && !n.Integrate {
		steps = append(steps, step.Step{
			Name: "alias", Text: "note in the alias of " + n.Name + " that no other firewall has rules of it",
			Do:   func(context.Context) error { return m.record(n.Name, func(r *record) { r.integrated = false }) },
			Undo: func(context.Context) error { return m.record(n.Name, func(r *record) { r.integrated = true }) },
		})
	}
	return steps, nil
}

// endIntegrationSteps take back what other firewalls have for a network, if its file or its bridge
// says that they may have something.
func (m *Manager) endIntegrationSteps(ctx context.Context, name string, rules *nft.Ruleset, file bool,
	br *rtnl.Link, r record,
) ([]step.Step, error) {
	integrated := r.integrated
	if file && !integrated {
		// A file that cannot be read may have said so, but then the bridge would know.
		n, err := m.Dir.Read(name)
		integrated = err != nil && br == nil || err == nil && n.Integrate
	}
	if !integrated {
		return nil, nil
	}
	legacy, err := firewall.LegacyTables(m.NS)
	if err != nil {
		return nil, err
	}
	i := compareIntegration(ctx, m.firewalls(rules, legacy), &config.Network{Name: name})
	var steps []step.Step
	for i, r := range i.keeps {
		steps = append(steps, leaveStep(i, r))
	}
	return steps, i.err
}

func leaveStep(i int, r integrate.Rule) step.Step {
	return step.Step{Name: fmt.Sprintf("leave %s %d", r.Owner, i+1), Text: "take back: " + r.Text, Do: r.Remove}
}
