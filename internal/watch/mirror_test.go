package watch

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/qmp"
	"vmnet/tapmgr"
)

func filter(multicast string, table ...string) qmp.RxFilter {
	return qmp.RxFilter{Multicast: multicast, MulticastTable: table}
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
	x.Guest.UUID = "AA000000-0000-0000-0000-000000000000"
	m.guests[7] = &guest{nics: []tapmgr.Mirror{x}}
	if m.noteChange(libvirt.Event{Domain: libvirt.Domain{UUID: domainxml.UUID{0xbb}}}) || m.guests[7].due {
		t.Error("another guest's change is taken for this one's")
	}
	if !m.noteChange(libvirt.Event{Domain: libvirt.Domain{UUID: domainxml.UUID{0xaa}}}) || !m.guests[7].due {
		t.Error("its change is not noted")
	}
}

func TestFilterText(t *testing.T) {
	many := slices.Repeat([]string{"33:33:00:00:00:01"}, 10)
	for want, f := range map[string]qmp.RxFilter{
		"no multicast, as the guest wants":                                   filter("none", many...),
		"all multicast, as the guest wants":                                  filter("all", many...),
		"multicast to 33:33:00:00:00:01":                                     filter("normal", many[0]),
		"multicast to" + strings.Repeat(" 33:33:00:00:00:01", 8) + " 2 more": filter("normal", many...),
		"multicast to 33:33:00:00:00:02":                                     filter("normal", "\x1b[2J", strings.Repeat("x", 1e6), "33:33:00:00:00:02"),
	} {
		if got := filterText(f); got != want {
			t.Errorf("%.200q, want %q", got, want)
		}
	}
}
