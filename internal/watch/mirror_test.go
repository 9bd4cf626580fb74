package watch

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr"
)

func filter(multicast raw.RxState, table ...string) raw.RxFilterInfo {
	return raw.RxFilterInfo{Multicast: multicast, MulticastTable: table}
}

func TestReportsThatAGuestCausesAreBounded(t *testing.T) {
	g := &guest{told: map[string]bool{}}
	n := 0
	for i := range 1000 {
		for range 2 {
			if g.once(fmt.Sprint(i)) {
				n++
			}
		}
	}
	if n != 64 {
		t.Errorf("%d reports", n)
	}
}

func TestChangesAreOfTheGuestOfThatUUID(t *testing.T) {
	m := newMirrors(nil, nil)
	var x tapmgr.Mirror
	x.UUID = "AA000000-0000-0000-0000-000000000000"
	m.guests[7] = &guest{nics: []tapmgr.Mirror{x}}
	if m.noteChange(libvirt.Event{Domain: libvirt.Domain{UUID: domainxml.UUID{0xbb}}}) || m.guests[7].due {
		t.Error("another guest's change is taken for this one's")
	}
	if !m.noteChange(libvirt.Event{Domain: libvirt.Domain{UUID: domainxml.UUID{0xaa}}}) || !m.guests[7].due {
		t.Error("its change is not noted")
	}
}

func TestGroupsText(t *testing.T) {
	many := slices.Repeat([]string{"33:33:00:00:00:01"}, 10)
	for want, f := range map[string]raw.RxFilterInfo{
		"no multicast, as the guest wants":                                       filter(raw.RxStateNone, many...),
		"all multicast, as the guest wants":                                      filter(raw.RxStateAll, many...),
		"multicast to 33:33:00:00:00:01":                                         filter(raw.RxStateNormal, many[0]),
		"multicast to" + strings.Repeat(" 33:33:00:00:00:01", 8) + " and 2 more": filter(raw.RxStateNormal, many...),
		"multicast to 33:33:00:00:00:02": filter(raw.RxStateNormal, "\x1b[2J",
			strings.Repeat("x", 1e6), "33:33:00:00:00:02"),
	} {
		if got := groupsText(groupsOf(f)); got != want {
			t.Errorf("%.200q, want %q", got, want)
		}
	}
}
