package tapmgr

import (
	"context"
	"slices"

	"vmnet/internal/kernel/rtnl"
)

// surveyEvery is how many readings of a Counting begin with a whole survey: what has changed
// without a change of the host's links is seen at the next one.
const surveyEvery = 5

// A Counting reads the counters of all NICs again and again, for a fraction of what as many calls
// of [Manager.Survey] cost: as long as the host's links stay as they are, it reads only these, and
// looks at no process. It is for one goroutine.
type Counting struct {
	m     *Manager
	look  Look
	nics  []Sighting
	links map[int]*rtnl.Link // of the host's netns, by index
	reads int
}

// Counting begins to count. Nothing is read yet.
func (m *Manager) Counting(look Look) *Counting { return &Counting{m: m, look: look} }

// Read returns what Survey would return, but that the states of NICs are those of the last survey.
func (c *Counting) Read(ctx context.Context) ([]Sighting, error) {
	links, err := c.m.host.NL.Links("", 0)
	if err != nil {
		return nil, err
	}
	now := map[int]*rtnl.Link{}
	for _, l := range links {
		now[l.Index] = l
	}
	c.reads++
	survey := c.reads%surveyEvery == 1 || !c.sameLinks(now)
	c.links = now
	if !survey && c.recount(ctx) {
		return slices.Clone(c.nics), nil
	}
	c.nics, err = c.m.Survey(ctx, "", c.look)
	return slices.Clone(c.nics), err
}

// sameLinks reports whether nothing but counters has changed.
func (c *Counting) sameLinks(now map[int]*rtnl.Link) bool {
	if len(now) != len(c.links) {
		return false
	}
	for index, l := range now {
		was := c.links[index]
		if was == nil || was.Name != l.Name || was.Alias != l.Alias || was.Up != l.Up || was.Carrier != l.Carrier ||
			was.Master != l.Master || was.Port != nil && l.Port != nil && was.Port.State != l.Port.State {
			return false
		}
	}
	return true
}

// recount replaces the counters, and reports whether it could: some only a survey can read.
func (c *Counting) recount(ctx context.Context) bool {
	for i := range c.nics {
		s := &c.nics[i]
		switch {
		case s.Switch || ctx.Err() != nil: // a switch counts by itself
			return false
		case s.device.Link == nil || s.Traffic == nil:
			continue
		case s.device.NetnsFile == nil:
			l := c.links[s.device.Link.Index]
			if l == nil {
				return false
			}
			s.Traffic = trafficOf(l.Stats, s.Type)
		default:
			err := c.m.host.On(&s.device, func(nl *rtnl.Conn) error {
				l, err := nl.LinkByIndex(s.device.Link.Index)
				if err == nil {
					s.Traffic = trafficOf(l.Stats, s.Type)
				}
				return err
			})
			if err != nil {
				return false
			}
		}
		if c.look.Drops {
			s.Drops = nil
			c.m.surveyDrops(s)
		}
	}
	return true
}
