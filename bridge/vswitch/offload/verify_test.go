package offload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// seen is what a simple parser finds in a frame. It shares no code with the package.
type seen struct {
	ip, l4, payload int
	proto           byte
	flags           byte
	seq             uint32
	id              uint16
}

// look parses a frame and checks its lengths and, unless partial is set, its checksums.
func look(f []byte, partial bool) (s seen, err error) {
	s.ip = 14
	for binary.BigEndian.Uint16(f[s.ip-2:]) == typeVLAN || binary.BigEndian.Uint16(f[s.ip-2:]) == typeQinQ {
		s.ip += 4
	}
	var addresses []byte
	if f[s.ip]>>4 == 4 {
		s.l4 = s.ip + int(f[s.ip]&15)*4
		s.proto, s.id, addresses = f[s.ip+9], binary.BigEndian.Uint16(f[s.ip+4:]), f[s.ip+12:s.ip+20]
		if n := int(binary.BigEndian.Uint16(f[s.ip+2:])); n != len(f)-s.ip {
			return s, fmt.Errorf("IPv4 length %d, have %d", n, len(f)-s.ip)
		}
		if sum := plainSum(f[s.ip:s.l4], 0); sum != 0xffff {
			return s, fmt.Errorf("IPv4 header sums up to %#x", sum)
		}
	} else {
		s.l4, s.proto, addresses = s.ip+40, f[s.ip+6], f[s.ip+8:s.ip+40]
		for s.proto == protoHopByHop || s.proto == protoDstOpts || s.proto == protoRouting {
			s.proto, s.l4 = f[s.l4], s.l4+8+8*int(f[s.l4+1])
		}
		if n := int(binary.BigEndian.Uint16(f[s.ip+4:])); n != len(f)-s.ip-40 {
			return s, fmt.Errorf("IPv6 length %d, have %d", n, len(f)-s.ip-40)
		}
	}
	s.payload = s.l4 + 8
	if s.proto == protoTCP {
		s.payload = s.l4 + int(f[s.l4+12]>>4)*4
		s.flags, s.seq = f[s.l4+13], binary.BigEndian.Uint32(f[s.l4+4:])
	} else if n := int(binary.BigEndian.Uint16(f[s.l4+4:])); n != len(f)-s.l4 {
		return s, fmt.Errorf("UDP length %d, have %d", n, len(f)-s.l4)
	}
	pseudo := uint32(plainSum(addresses, uint32(s.proto)+uint32(len(f)-s.l4)))
	none := s.proto == protoUDP && binary.BigEndian.Uint16(f[s.l4+6:]) == 0
	if sum := plainSum(f[s.l4:], pseudo); sum != 0xffff && !partial && !none {
		return s, fmt.Errorf("segment sums up to %#x", sum)
	}
	return s, nil
}

// verify checks that out is what super must become when it is segmented at gso bytes.
func verify(super []byte, gso int, out [][]byte, partial bool) error {
	was, err := look(super, true)
	if err != nil {
		return fmt.Errorf("the frame itself: %w", err)
	}
	var payload []byte
	for i, f := range out {
		s, err := look(f, partial)
		if err != nil {
			return fmt.Errorf("segment %d: %w", i, err)
		}
		if s.ip != was.ip || s.l4 != was.l4 || s.payload != was.payload || s.proto != was.proto {
			return fmt.Errorf("segment %d: %+v, was %+v", i, s, was)
		}
		if n := len(f) - s.payload; n != gso && (i < len(out)-1 || n > gso || n == 0) {
			return fmt.Errorf("segment %d of %d has %d bytes of %d", i, len(out), n, gso)
		}
		flags := was.flags
		if i > 0 {
			flags &^= 0x80
		}
		if i < len(out)-1 {
			flags &^= 0x09
		}
		if s.flags != flags {
			return fmt.Errorf("segment %d has flags %#x, want %#x", i, s.flags, flags)
		}
		if s.proto == protoTCP && s.seq != was.seq+uint32(len(payload)) {
			return fmt.Errorf("segment %d has sequence number %d", i, s.seq)
		}
		if f[s.ip]>>4 == 4 && s.id != was.id+uint16(i) {
			return fmt.Errorf("segment %d has id %d, the first %d", i, s.id, was.id)
		}
		if err := sameElsewhere(super, f, s); err != nil {
			return fmt.Errorf("segment %d: %w", i, err)
		}
		payload = append(payload, f[s.payload:]...)
	}
	if !bytes.Equal(payload, super[was.payload:]) {
		return fmt.Errorf("payload of %d bytes became %d", len(super)-was.payload, len(payload))
	}
	return nil
}

// sameElsewhere compares the headers except for the fields that segmentation changes.
func sameElsewhere(super, f []byte, s seen) error {
	changed := []int{s.l4 + 4, s.l4 + 5, s.l4 + 6, s.l4 + 7}
	if s.proto == protoTCP {
		changed = append(changed, s.l4+13, s.l4+16, s.l4+17)
	}
	if f[s.ip]>>4 == 4 {
		changed = append(changed, s.ip+2, s.ip+3, s.ip+4, s.ip+5, s.ip+10, s.ip+11)
	} else {
		changed = append(changed, s.ip+4, s.ip+5)
	}
	for i := range s.payload {
		if f[i] != super[i] && !slices.Contains(changed, i) {
			return fmt.Errorf("byte %d is %#x, was %#x", i, f[i], super[i])
		}
	}
	return nil
}
