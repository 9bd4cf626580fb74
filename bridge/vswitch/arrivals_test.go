package vswitch

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// TestArrivals: what a slot says is not trusted, since any process that has the socket can write to
// the ring.
func TestArrivals(t *testing.T) {
	const mac = slotHead + vnetLen + 4
	content := bytes.Repeat([]byte{7}, vnetLen+60)
	for name, tc := range map[string]struct {
		status, length, snaplen uint32
		mac                     uint16
		ok, cut, queued         bool
		want                    int // bytes with the vnet header
	}{
		"empty":                {},
		"a frame":              {status: unix.TP_STATUS_USER, length: 60, snaplen: 60, mac: mac, ok: true, want: vnetLen + 60},
		"a tag":                {status: unix.TP_STATUS_USER | unix.TP_STATUS_VLAN_VALID, length: 60, snaplen: 60, mac: mac, ok: true, want: vnetLen + 64},
		"a tag, short":         {status: unix.TP_STATUS_USER | unix.TP_STATUS_VLAN_VALID, length: 5, snaplen: 5, mac: mac, ok: true, want: vnetLen + 5},
		"nothing":              {status: unix.TP_STATUS_USER, mac: mac, ok: true, want: vnetLen},
		"queued":               {status: unix.TP_STATUS_USER | unix.TP_STATUS_COPY, length: 9000, snaplen: 1900, mac: mac, ok: true, queued: true, cut: true},
		"cut":                  {status: unix.TP_STATUS_USER, length: 9000, snaplen: 1900, mac: mac, ok: true, cut: true},
		"before the slot":      {status: unix.TP_STATUS_USER, length: 60, snaplen: 60, mac: 3, ok: true, cut: true},
		"longer than the slot": {status: unix.TP_STATUS_USER, length: 2000, snaplen: 2000, mac: mac, ok: true, cut: true},
		"far longer":           {status: unix.TP_STATUS_USER, length: 1<<32 - 1, snaplen: 1<<32 - 1, mac: mac, ok: true, cut: true},
		"after the slot":       {status: unix.TP_STATUS_USER, length: 0, snaplen: 0, mac: 65535, ok: true, cut: true},
	} {
		a := &arrivals{ring: make([]byte, arrivalSlots*arrivalSlot), next: arrivalSlots - 1}
		slot := a.ring[a.next*arrivalSlot:]
		for at, v := range map[int]uint32{slotStatus: tc.status, slotLen: tc.length, slotSnaplen: tc.snaplen} {
			binary.NativeEndian.PutUint32(slot[at:], v)
		}
		binary.NativeEndian.PutUint16(slot[slotMAC:], tc.mac)
		copy(slot[mac-vnetLen:], content)
		f, ok := a.at(0)
		if ok != tc.ok || ok && (f.cut != tc.cut || f.queued != tc.queued) {
			t.Errorf("%s: %+v, %v", name, f, ok)
			continue
		}
		if !ok || f.cut || f.queued {
			continue
		}
		if got := f.copyTo(make([]byte, arrivalSlot)); len(got) != tc.want {
			t.Errorf("%s: %d bytes, want %d", name, len(got), tc.want)
		}
		a.free(1)
		if _, again := a.at(arrivalSlots - 1); again || a.next != 0 {
			t.Errorf("%s: the slot is not free, or %d comes next", name, a.next)
		}
	}
}
