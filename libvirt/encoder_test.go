package libvirt

import "encoding/binary"

// encoder appends XDR (RFC 4506) to buf, for daemons that a test plays.
type encoder struct{ buf []byte }

func (e *encoder) uint32(v uint32) { e.buf = binary.BigEndian.AppendUint32(e.buf, v) }
func (e *encoder) int32(v int32)   { e.uint32(uint32(v)) }

func (e *encoder) string(s string) {
	e.uint32(uint32(len(s)))
	e.buf = append(e.buf, s...)
	e.buf = append(e.buf, make([]byte, padding(len(s)))...)
}

func (e *encoder) domain(d Domain) {
	e.string(d.Name)
	e.buf = append(e.buf, d.UUID[:]...)
	e.int32(d.ID)
}

// present writes whether an optional value follows.
func (e *encoder) present(yes bool) {
	if yes {
		e.uint32(1)
	} else {
		e.uint32(0)
	}
}

// encode returns a packet. The files follow it, one byte each.
func encode(h header, files int, args func(*encoder)) []byte {
	var e encoder
	if files > 0 {
		e.uint32(uint32(files))
	}
	if args != nil {
		args(&e)
	}
	return h.packet(e.buf)
}
