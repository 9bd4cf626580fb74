package vhostuser

// Look is Receive without waiting: it returns 0 if there are no frames. Done ends its batch, too.
// It does not ask the guest for a kick, so that the guest's driver makes no system call while the
// caller looks again and again. If it returns false, only Receive can say why there are none.
func (p *Pair) Look(frames []Received) (n int, ok bool) {
	p.frames, p.looks = frames, true
	n, err := p.take()
	p.looks = false
	return n, err == nil
}
