package bridges

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"vmnet/bridge/brport"
	"vmnet/bridge/vxlan"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// vxlanDevice is a VXLAN device that steps make.
type vxlanDevice struct {
	c      *rtnl.Conn
	bridge string
	vxlan.Config
	mtu   int
	there func() (*rtnl.Link, error) // reads the bridge
}

func (v *vxlanDevice) name() string { return v.Interface(v.bridge) }

func (v *vxlanDevice) createStep() step.Step {
	which, learning := fmt.Sprintf("id %d", v.VNI), "nolearning"
	if v.Map != nil {
		which = "external vnifilter"
	}
	if v.Static() {
		learning = "learning"
	}
	return step.Step{
		Name: "vxlan", Text: fmt.Sprintf("ip link add %s mtu %d type vxlan %s local %s dstport %d %s ttl 64",
			v.name(), v.mtu, which, v.Local, v.UDPPort(), learning),
		Do:   func(context.Context) error { return v.explain(v.create()) },
		Undo: func(context.Context) error { return v.delete() },
	}
}

func (v *vxlanDevice) create() error {
	attrs := append(rtnl.NewVXLAN(rtnl.VXLAN{
		VNI: v.VNI, Local: v.Local, Port: v.UDPPort(), Learning: v.Static(),
		External: v.Map != nil, VNIFilter: v.Map != nil,
	}), rtnl.Name(v.name()), rtnl.MTU(v.mtu))
	err := v.c.CreateWithAlias("vxlan", rtnl.RandomIndex(), markVXLAN+alias.Escape(v.bridge), attrs...)
	if err != nil || v.Map == nil {
		return err
	}
	l, err := v.c.Link(v.name())
	if err == nil && !l.VXLAN.VNIFilter {
		err = errors.New("the kernel cannot filter VNIs (Linux 5.18 can; or make a bridge with --vxlan for each VNI)")
	}
	return err
}

// explain adds the cause and cure to the error of a request for a VXLAN device.
func (v *vxlanDevice) explain(err error) error {
	switch {
	case errors.Is(err, syscall.EEXIST):
		return fmt.Errorf("%w (another VXLAN device has %s and port %d: ip -d link show type vxlan)", err, v.Config,
			v.UDPPort())
	case errors.Is(err, syscall.EOPNOTSUPP):
		return fmt.Errorf("%w (the kernel's VXLAN driver is missing or not loaded: modprobe vxlan)", err)
	case errors.Is(err, syscall.EADDRINUSE) && v.Map != nil: // their sockets differ (VXLAN_F_RCV_FLAGS)
		return fmt.Errorf("%w (a VXLAN device of one VNI, or another program, has UDP port %d: give one a "+
			"--vxlan-port of its own, on all hosts)", err, v.UDPPort())
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w (another program, or a VXLAN device with a map, has UDP port %d: ss -lnup)", err,
			v.UDPPort())
	}
	return Explain(err)
}

func (v *vxlanDevice) delete() error {
	l, err := v.c.Link(v.name())
	if err != nil || !isVXLANOf(l, v.bridge) {
		return rtnl.IgnoreNotExist(err)
	}
	return rtnl.IgnoreNotExist(v.c.Delete(l.Index))
}

// on returns a step that does f to the device.
func (v *vxlanDevice) on(name, text string, f func(l *rtnl.Link) error) step.Step {
	return step.Step{Name: name, Text: text, Do: func(context.Context) error {
		l, err := v.c.Link(v.name())
		if err == nil {
			err = f(l)
		}
		return v.explain(err)
	}}
}

func (v *vxlanDevice) portStep() step.Step {
	text := fmt.Sprintf("ip link set %s master %s", v.name(), v.bridge)
	settings := brport.Settings{NoLearning: !v.Static()}
	flags := ""
	if !v.Static() {
		flags += " learning off"
	}
	if v.Map != nil {
		flags += " vlan_tunnel on"
		settings.Trunk = vlanRanges(v.Map)
	}
	if flags != "" {
		text += fmt.Sprintf("; bridge link set dev %s%s", v.name(), flags)
	}
	return v.on("port", text, func(l *rtnl.Link) error {
		br, err := v.there()
		if err != nil {
			return err
		}
		if err := v.c.SetQuiet(l.Index); err != nil {
			return err
		}
		if err := AddPortDown(v.c, br, l, settings); err != nil || v.Map == nil {
			return err
		}
		return v.c.SetVLANTunnel(l.Index, true)
	})
}

func (v *vxlanDevice) suppressStep() step.Step {
	return v.on("neigh-suppress", fmt.Sprintf("bridge link set dev %s neigh_suppress on", v.name()),
		func(l *rtnl.Link) error { return v.c.SetNeighSuppress(l.Index, true) })
}

// floodSteps send broadcasts to the listed hosts and to no other; has are the entries that there
// are. Each step is about one host, with all of its VNIs.
func (v *vxlanDevice) floodSteps(has []rtnl.Flood) (steps []step.Step) {
	var want []rtnl.Flood
	for _, a := range v.Remotes {
		for _, vni := range v.floodVNIs() {
			want = append(want, rtnl.Flood{VNI: vni, Dst: a})
		}
	}
	for _, change := range []struct {
		add  bool
		list []rtnl.Flood
	}{{true, except(want, has)}, {false, except(has, want)}} {
		for list := change.list; len(list) > 0; {
			dst := list[0].Dst
			other := func(f rtnl.Flood) bool { return f.Dst != dst }
			one := slices.DeleteFunc(slices.Clone(list), other)
			list = slices.DeleteFunc(slices.Clone(list), func(f rtnl.Flood) bool { return !other(f) })
			steps = append(steps, v.floodStep(one, change.add))
		}
	}
	return steps
}

// floodVNIs returns what the entries of a device that has all of its segments are about.
func (v *vxlanDevice) floodVNIs() []int {
	if v.Map == nil {
		return []int{0}
	}
	return v.Map.VNIs()
}

func except(all, gone []rtnl.Flood) (rest []rtnl.Flood) {
	is := map[rtnl.Flood]bool{}
	for _, f := range gone {
		is[f] = true
	}
	return slices.DeleteFunc(slices.Clone(all), func(f rtnl.Flood) bool { return is[f] })
}

// floodStep adds or deletes the entries of one host.
func (v *vxlanDevice) floodStep(list []rtnl.Flood, add bool) step.Step {
	verb, name, do, undo := "append", "remote ", v.c.AddFlood, v.c.DeleteFlood
	if !add {
		verb, name, do, undo = "del", "no remote ", v.c.DeleteFlood, v.c.AddFlood
	}
	dst := list[0].Dst
	text := fmt.Sprintf("bridge fdb %s 00:00:00:00:00:00 dev %s dst %s", verb, v.name(), dst)
	if v.Map != nil {
		text += " src_vni " + vniText(list)
	}
	each := func(l *rtnl.Link, f func(int, rtnl.Flood) error) error {
		for _, entry := range list {
			if err := f(l.Index, entry); err != nil && !errors.Is(err, syscall.ENOENT) {
				return err
			}
		}
		return nil
	}
	s := v.on(name+dst.String(), text, func(l *rtnl.Link) error { return each(l, do) })
	s.Undo = v.undoOn(func(l *rtnl.Link) error { return rtnl.IgnoreNotExist(each(l, undo)) })
	return s
}

func (v *vxlanDevice) upStep() step.Step {
	return v.on("up", fmt.Sprintf("ip link set %s up", v.name()),
		func(l *rtnl.Link) error { return v.c.Set(l.Index, rtnl.Up(true)) })
}
