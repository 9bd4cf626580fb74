package nsport

import (
	"context"
	"fmt"
	"slices"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// mendSteps returns the steps that make an attachment as its record says: no step if it is so.
// Addresses and routes
// that somebody has added in the namespace stay.
func (j *job) mendSteps() (list []step.Step) {
	j.host, j.end = j.have.host, j.have.end
	if j.host != nil {
		list = append(list, j.mendPort()...)
	}
	if j.end == nil {
		return list
	}
	if j.rec.Type != Veth && macvlan.ModeName(j.end) != j.rec.Mode {
		list = append(list, step.Step{
			Name: "mode",
			Text: fmt.Sprintf("RTM_NEWLINK %s in netns %s: mode %s", j.end.Name, j.t.name, j.rec.Mode),
			Do:   func(context.Context) error { return macvlan.SetMode(j.t.nl, j.end, j.rec.Mode) },
		})
	}
	addrs, err := j.t.nl.Addrs(j.end.Index)
	for _, a := range j.rec.Addresses {
		if err != nil || !slices.Contains(addrs, a) {
			list = append(list, j.addressStep(a))
		}
	}
	if !j.end.Up {
		list = append(list, j.upStep())
	}
	routes, err := j.t.nl.Routes()
	for _, g := range j.rec.Gateways {
		if err != nil || !slices.ContainsFunc(routes, func(r rtnl.Route) bool { return isDefault(r, g) }) {
			list = append(list, j.routeStep(g))
		}
	}
	return list
}

// mendPort makes the end here a port with the settings of the record.
func (j *job) mendPort() []step.Step {
	port := j.portStep()
	if j.host.Master != j.place.Index { // AddPort refuses one that is another bridge's now
		return []step.Step{port}
	}
	now, err := bridges.ReadPort(j.m.nl(), j.place, j.host)
	if err == nil && now.Equal(bridges.Effective(j.place, j.spec.Port)) && j.host.Up {
		return nil
	}
	return []step.Step{port}
}
