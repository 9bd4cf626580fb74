package nicflags

import (
	"slices"

	"github.com/spf13/pflag"
	"vmnet/tapmgr/nic"
)

// Change has what flags change of a NIC that is there.
type Change struct {
	given []Word // in the order of the command line
	link  string
}

// none is the value with which a flag takes back what it has set.
const none = "none"

// AddChange adds the flags of a NIC, and --link. Each also takes the word none, for what a NIC has
// without the flag, and those without a value take yes and no.
func AddChange(fs *pflag.FlagSet) *Change {
	c := &Change{}
	model, _ := All()
	model.VisitAll(func(f *pflag.Flag) {
		if f.Name == "nic" || f.Name == "via" {
			return
		}
		own := *f
		own.Value, own.DefValue = &recorder{Flag: f, change: c}, ""
		fs.AddFlag(&own)
	})
	Choice(fs, &c.link, "link", "", "whether the guest and its neighbours see a carrier", "up", "down")
	return c
}

// All returns a set of all flags of a NIC.
func All() (*pflag.FlagSet, *NIC) {
	fs := pflag.NewFlagSet("NIC", pflag.ContinueOnError)
	fs.SortFlags = false
	n := AddNIC(fs)
	n.AddSwitch(fs)
	n.AddVia(fs, true)
	return fs, n
}

// recorder keeps the values that a flag is given, and checks each at once.
type recorder struct {
	*pflag.Flag
	change *Change
	text   string
}

func (r *recorder) Type() string   { return r.Value.Type() }
func (r *recorder) String() string { return r.text }

func (r *recorder) Set(s string) error {
	switch {
	case s == none:
	case r.Value.Type() == "bool" && slices.Contains([]string{"yes", "on"}, s):
		s = "true"
	case r.Value.Type() == "bool" && slices.Contains([]string{"no", "off"}, s):
		s = "false"
	}
	if s != none {
		if err := r.Value.Set(s); err != nil {
			return err
		}
	}
	r.text = s
	r.change.take(r.Name, s)
	return nil
}

func (c *Change) take(flag, value string) {
	for i := range c.given {
		if w := &c.given[i]; w.Flag == flag {
			model, _ := All()
			if !Repeatable(model.Lookup(flag)) || value == none {
				w.Values = nil
			}
			w.Values = append(w.Values, value)
			return
		}
	}
	c.given = append(c.given, Word{flag, []string{value}})
}

// Places are the flags that say where a NIC is, of which it has one.
var Places = []string{"bridge", "network", "routed", "switch", "macvtap", "ipvtap"}

// replacedBy returns the flags whose values a flag takes the place of: a NIC has one place, with
// its addresses there, and an access port is no trunk.
func replacedBy(flag string) []string {
	switch {
	case flag == "vlan":
		return []string{"trunk", "native"}
	case flag == "trunk":
		return []string{"vlan"}
	case slices.Contains(Places, flag):
		return append(slices.Clone(Places), "ip")
	}
	return nil
}

// IsEmpty reports whether no flag was given.
func (c *Change) IsEmpty() bool { return len(c.given) == 0 && c.link == "" }

// gives reports whether a flag is given that value.
func (c *Change) gives(flag, value string) bool {
	return slices.ContainsFunc(c.given, func(w Word) bool {
		return w.Flag == flag && slices.Contains(w.Values, value)
	})
}

// has reports whether a flag is given.
func (c *Change) has(flag string) bool {
	return slices.ContainsFunc(c.given, func(w Word) bool { return w.Flag == flag })
}

// Edit returns a NIC that is as now, but for what the flags ask for. An error means wrong usage.
func (c *Change) Edit(now nic.Spec) (nic.Spec, error) {
	if c.gives("port-security", none) {
		now.Security = nic.Security{}
		if now.Network == "" && now.Routed == "" {
			now.IP = nil // which were there for port security
		}
	}
	words := Words(now)
	drop := func(flags ...string) {
		words = slices.DeleteFunc(words, func(w Word) bool { return slices.Contains(flags, w.Flag) })
	}
	for _, w := range c.given {
		if w.Flag == "bridge" && now.Bridge != "" || w.Flag == "switch" && now.Switch != nil {
			drop(w.Flag) // the addresses of port security stay
			continue
		}
		drop(append(replacedBy(w.Flag), w.Flag)...)
	}
	words = append(words, c.given...)
	fs, n := All()
	for _, w := range words {
		for _, v := range w.Values {
			if w.Flag == "link" || v == none {
				continue
			}
			if err := fs.Set(w.Flag, v); err != nil {
				return now, err
			}
		}
	}
	s, err := n.Spec()
	s.Target, s.NIC, s.LinkDown = now.Target, now.NIC, now.LinkDown
	if s.Rates.Up.Bits+s.Rates.Down.Bits == 0 && !c.has("burst") {
		s.Rates.Burst = 0 // goes with the rates
	}
	if s.Rates.Up.Bits+s.Rates.Down.Bits == 0 && !c.has("shape") {
		s.Rates.Shape = false // likewise
	}
	if c.link != "" {
		s.LinkDown = c.link == "down"
	}
	return s, err
}
