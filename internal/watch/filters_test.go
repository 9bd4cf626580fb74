package watch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/digitalocean/go-qemu/qmp/raw"
	"github.com/google/go-cmp/cmp"

	"vmnet/macvtap/vtap"
	"vmnet/qmp"
)

// answers is a QEMU that sends one reply to every command but query-version.
type answers string

func (a answers) Command(_ context.Context, command string, _ *os.File) (string, error) {
	if strings.Contains(command, "query-version") {
		return `{"return": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}}`, nil
	}
	if command != `{"execute":"query-rx-filter","arguments":{}}` {
		return "", fmt.Errorf("%w: %s", qmp.ErrClosed, command)
	}
	return string(a), nil
}

func (a answers) Event(ctx context.Context) (qmp.Event, error) {
	<-ctx.Done()
	return qmp.Event{}, qmp.ErrClosed
}

func (a answers) Close() error { return nil }

// filters returns the filters that filtersBy reads from the reply.
func (a answers) filters(ctx context.Context) ([]raw.RxFilterInfo, error) {
	c, err := qmp.Through(ctx, a)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return filtersBy(ctx, c)
}

func TestFilters(t *testing.T) {
	got, err := answers(
		`{"return":[{"name":"a","promiscuous":true,"multicast":"all","main-mac":"52:54:00:00:00:01"},{"name":"b"}],"id":"libvirt-7"}`).filters(t.Context())
	want := []raw.RxFilterInfo{
		{Name: "a", Promiscuous: true, Multicast: raw.RxStateAll, MainMac: "52:54:00:00:00:01"},
		{Name: "b"},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	_, err = answers(`{"error":{"class":"GenericError","desc":"no such thing"}}`).filters(t.Context())
	var refused *qmp.Error
	if !errors.As(err, &refused) || err.Error() != "query-rx-filter: no such thing" {
		t.Error(err)
	}
	for name, answer := range map[string]string{
		"a list":            `[]`,
		"no list":           `{"return": {}}`,
		"no JSON":           `{"return": `,
		"no filters":        `{"return": [7]}`,
		"an unknown state":  `{"return": [{"name": "a", "multicast": "some"}]}`,
		"a negative number": `{"return": [{"name": -1}]}`,
	} {
		if got, err := answers(answer).filters(t.Context()); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestFiltersAreBounded: a short text does not make a long list.
func TestFiltersAreBounded(t *testing.T) {
	list := func(element string, n int) answers {
		return answers(`{"return": [` + strings.Repeat(element+",", n-1) + element + `]}`)
	}
	for _, element := range []string{"{}", "null"} {
		if got, err := list(element, maxFilters).filters(t.Context()); len(got) != maxFilters || err != nil {
			t.Errorf("%d filters, %v", len(got), err)
		}
		for _, n := range []int{maxFilters + 1, 100_000} {
			if got, err := list(element, n).filters(t.Context()); !errors.Is(err, qmp.ErrProtocol) || got != nil {
				t.Errorf("%d filters of %d, %v", len(got), n, err)
			}
		}
	}
}

func FuzzFilters(f *testing.F) {
	f.Add(
		`{"return":[{"name":"vmnet-net0","multicast":"normal","multicast-table":["33:33:00:00:00:01"]}],"id":"libvirt-7"}`)
	f.Add(`{"error":{"class":"GenericError","desc":"no"}}`)
	f.Fuzz(func(t *testing.T, answer string) {
		filters, err := answers(answer).filters(t.Context())
		if len(filters) > maxFilters {
			t.Errorf("%d filters, %v", len(filters), err)
		}
		for _, filter := range filters {
			groups, all := groupsOf(filter)
			if len(groups) > vtap.MaxGroups || all && groups != nil {
				t.Errorf("%d groups, all is %v", len(groups), all)
			}
		}
	})
}

func TestGroupsOf(t *testing.T) {
	table := []string{"33:33:ff:01:02:03", "52:54:00:01:02:03", "x", "01:00:5e:00:00:fb", "01:00:5e:00:00:fb:00:01"}
	groups := []net.HardwareAddr{{0x33, 0x33, 0xff, 1, 2, 3}, {1, 0, 0x5e, 0, 0, 0xfb}}
	for name, test := range map[string]struct {
		f      raw.RxFilterInfo
		groups []net.HardwareAddr
		all    bool
	}{
		"a driver's":      {filter(raw.RxStateNormal, table...), groups, false},
		"none":            {filter(raw.RxStateNone, table...), nil, false},
		"all":             {filter(raw.RxStateAll), nil, true},
		"too many for it": {raw.RxFilterInfo{MulticastOverflow: true, MulticastTable: table}, nil, true},
		"too many for us": {filter(raw.RxStateNormal, make([]string, vtap.MaxGroups+1)...), nil, true},
		"no driver yet":   {raw.RxFilterInfo{Promiscuous: true}, nil, true},
		"nothing":         {filter(raw.RxStateNormal), nil, false},
	} {
		got, all := groupsOf(test.f)
		if diff := cmp.Diff(test.groups, got); diff != "" || all != test.all {
			t.Errorf("%s: all is %v (-want +got):\n%s", name, all, diff)
		}
	}
}
