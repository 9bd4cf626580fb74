package vswitch

// A clock has the time of a batch, which it reads when it is first asked: that takes as long as
// half a frame.
type clock struct {
	sw *Switch
	at int64 // 0 before it is asked
}

// now returns the nanoseconds since the switch's start.
func (c *clock) now() int64 {
	if c.at == 0 {
		c.at = c.sw.now()
	}
	return c.at
}

// stopped reports whether the loop guard has stopped a port.
func (r *receiver) stopped(p *Port) bool {
	return p.stop.until.Load() != 0 && p.stop.stopped(r.clock.now())
}
