package metrics

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// NICs returns the metrics of NICs. Of two that claim the same guest, id and interface, it keeps
// the one that no user alone claims, or else the first. vhost is the CPU time of the vhost threads
// of VMMs, by pid.
func NICs(all []tapmgr.Sighting, vhost map[int]time.Duration) []Family {
	info := gauge("vmnet_nic_info", "A NIC of a guest, or a host access, whose guest is empty. The value is always 1.")
	state := gauge("vmnet_nic_state", "The state that vmnet list shows of the NIC. The value is always 1.")
	connected := gauge("vmnet_nic_connected",
		"Whether the NIC is in a state in which frames pass, which are forwarding and up.")
	queues := gauge("vmnet_nic_queues", "Queue pairs of the NIC.")
	addresses := gauge("vmnet_nic_addresses", "Known IP addresses of the NIC, without IPv6 link-local ones.")
	drops := Family{
		Name: "vmnet_nic_dropped_frames_total", Kind: Counter,
		Help: "Frames that port security or a userspace switch has dropped at the NIC, by reason.",
	}
	cpu := Family{
		Name: "vmnet_guest_vhost_cpu_seconds_total", Kind: Counter,
		Help: "CPU time of the vhost threads of the guest's VMM.",
	}
	traffic := trafficFamilies()
	seen, guests := map[[3]string]bool{}, map[int]bool{0: true}
	for _, n := range trustedFirst(all) {
		key := [3]string{n.VM, n.ID, n.Interface}
		if seen[key] {
			continue
		}
		seen[key] = true
		add := func(f *Family, value float64, more ...Label) {
			labels := []Label{{"guest", n.VM}, {"nic", n.ID}, {"interface", n.Interface}}
			f.Samples = append(f.Samples, Sample{append(labels, more...), value})
		}
		add(&info, 1, Label{"type", n.Type}, Label{"source", n.Source}, Label{"network", n.Network},
			Label{"mac", n.MAC}, Label{"model", n.Model})
		add(&state, 1, Label{"state", string(n.State)})
		add(&connected, number(n.State == nic.Up || n.State == "forwarding"))
		add(&queues, float64(n.Queues))
		add(&addresses, float64(len(n.Usual())))
		for i := range traffic {
			if n.Traffic != nil {
				add(&traffic[i].Family, float64(*traffic[i].of(n.Traffic)))
			}
		}
		for _, why := range slices.Sorted(maps.Keys(n.Drops)) {
			add(&drops, float64(n.Drops[why]), Label{"reason", why})
		}
		if spent, ok := vhost[n.PID]; ok && !guests[n.PID] {
			guests[n.PID] = true
			labels := []Label{{"guest", n.VM}, {"pid", strconv.Itoa(n.PID)}}
			cpu.Samples = append(cpu.Samples, Sample{labels, spent.Seconds()})
		}
	}
	families := []Family{info, state, connected, queues, addresses}
	for _, t := range traffic {
		families = append(families, t.Family)
	}
	return append(families, drops, cpu)
}

func gauge(name, help string) Family { return Family{Name: name, Kind: Gauge, Help: help} }

// trustedFirst sorts those that only a user claims, or had made, behind the others.
func trustedFirst(all []tapmgr.Sighting) []tapmgr.Sighting {
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b tapmgr.Sighting) int { return cmp.Compare(min(a.UID, 1), min(b.UID, 1)) })
	return sorted
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// trafficFamily is a counter of nic.Traffic.
type trafficFamily struct {
	Family
	of func(*nic.Traffic) *uint64
}

func trafficFamilies() (all []trafficFamily) {
	for _, d := range []struct {
		name, text string
		of         func(*nic.Traffic) *nic.Direction
	}{
		{"from_guest", "from the guest", func(t *nic.Traffic) *nic.Direction { return &t.FromGuest }},
		{"to_guest", "to the guest", func(t *nic.Traffic) *nic.Direction { return &t.ToGuest }},
	} {
		for _, c := range []struct {
			name, text string
			of         func(*nic.Direction) *uint64
		}{
			{"bytes", "Bytes", func(d *nic.Direction) *uint64 { return &d.Bytes }},
			{"packets", "Packets", func(d *nic.Direction) *uint64 { return &d.Packets }},
			{"errors", "Errors with packets", func(d *nic.Direction) *uint64 { return &d.Errors }},
			{"drops", "Packets dropped by the host interface", func(d *nic.Direction) *uint64 { return &d.Dropped }},
		} {
			all = append(all, trafficFamily{
				Family{
					Name: "vmnet_nic_" + d.name + "_" + c.name + "_total", Kind: Counter,
					Help: c.text + " " + d.text + ", since the host interface was made.",
				},
				func(t *nic.Traffic) *uint64 { return c.of(d.of(t)) },
			})
		}
	}
	return all
}

// About returns the metrics of this program and of one collection.
func About(version string, took time.Duration, failed bool) []Family {
	build := gauge("vmnet_build_info", "The version of vmnet that has collected these metrics. The value is always 1.")
	build.Samples = []Sample{{[]Label{{"version", version}}, 1}}
	duration := gauge("vmnet_collection_duration_seconds", "How long the collection of these metrics took.")
	duration.Samples = []Sample{{nil, took.Seconds()}}
	success := gauge("vmnet_collection_success", "Whether the NICs could be read.")
	success.Samples = []Sample{{nil, number(!failed)}}
	return []Family{build, duration, success}
}
