package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func TestVLANText(t *testing.T) {
	all := make([]int, 4096)
	for i := range all {
		all[i] = 4095 - i
	}
	for _, tt := range []struct {
		ids  []int
		want string
	}{
		{nil, ""},
		{[]int{7}, "7"},
		{[]int{3, 1, 2, 9, 10}, "1-3,9-10"},
		{[]int{5, 5}, "5"},
		{all, "0-4095"},
	} {
		if got := vlanText(tt.ids); got != tt.want {
			t.Errorf("vlanText(%v) = %q; want %q", tt.ids, got, tt.want)
		}
	}
}

func TestReport(t *testing.T) {
	joined := fmt.Errorf("attach P2/net0: port: %w\nundo tap: %w", syscall.EBUSY, syscall.EPERM)
	for _, tt := range []struct {
		name    string
		started bool
		err     error
		status  int
		want    string
	}{
		{"success", true, nil, 0, ""},
		{"silent", true, exitStatus(1), 1, ""},
		{"failure", true, syscall.EBUSY, 1, "vmnet: device or resource busy\n"},
		{
			"joined", true, joined, 1,
			"vmnet: attach P2/net0: port: device or resource busy\nvmnet: also: undo tap: operation not permitted" +
				" (needs a capability that this user lacks here: run vmnet as root, CAP_NET_ADMIN included)\n",
		},
		{"before the verb", false, syscall.EINVAL, 2, "vmnet: invalid argument\nsee x --help\n"},
		{
			"invalid", true, fmt.Errorf("MTU 1: %w", nic.ErrInvalid), 2,
			"vmnet: MTU 1: " + nic.ErrInvalid.Error() + "\nsee x --help\n",
		},
		{"usage", true, usagef("no"), 2, "vmnet: no\nsee x --help\n"},
		{"reader gone", true, outputError(syscall.EPIPE), 1, ""},
		{"monitor gone", true, syscall.EPIPE, 1, "vmnet: broken pipe\n"},
		{"control characters", true, fmt.Errorf("guest \x1b[31m"), 1, "vmnet: guest \ufffd[31m\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			a := &app{err: &stderr, started: tt.started}
			status := a.report(&cobra.Command{Use: "x"}, tt.err)
			if status != tt.status || stderr.String() != tt.want {
				t.Errorf("report(%v) = %d, printed %q; want %d, %q",
					tt.err, status, stderr.String(), tt.status, tt.want)
			}
		})
	}
}

func TestProgressIsThrottled(t *testing.T) {
	var stderr bytes.Buffer
	tell := (&app{err: &stderr}).progress()
	tell(tapmgr.Waiting, "one")
	tell(tapmgr.Waiting, "two")
	if got, want := stderr.String(), "vmnet: one\n"; got != want {
		t.Errorf("two texts at once printed %q; want %q", got, want)
	}
}

// TestPace: a wait that reports itself each second is reported each second on a terminal, and after
// 1, 2, 4, 8 and more seconds in a log.
func TestPace(t *testing.T) {
	for slows, want := range map[bool][]int{false: {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, true: {1, 2, 4, 8}} {
		p, start := pace{slows: slows}, time.Now()
		var got []int
		for second := 1; second <= 10; second++ {
			if p.allows(start.Add(time.Duration(second) * time.Second)) {
				got = append(got, second)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("slows %v: reports after %v s, want %v", slows, got, want)
		}
	}
}

// TestListAddresses: a list has the first addresses, and a wide one all, with their sources.
func TestListAddresses(t *testing.T) {
	address := func(ip string, from ...string) nic.Address {
		return nic.Address{IP: netip.MustParseAddr(ip), From: from}
	}
	nics := sightings([]nic.NIC{{VM: "P2", ID: "net0", State: nic.Up}, {VM: "P3", ID: "net0", State: nic.Up}})
	nics[0].Addresses = []nic.Address{
		address("10.0.0.2", "lease", "neighbour"), address("10.0.0.3", "agent"), address("fd00::2", "agent"),
		address("fe80::2", "neighbour"),
	}
	nics[0].Traffic = &nic.Traffic{FromGuest: nic.Direction{Bytes: 2048}}
	for wide, want := range map[bool]string{
		false: "VM NIC INTERFACE TYPE SOURCE MAC IP QUEUES STATE\n" +
			"P2 net0 - - - - 10.0.0.2,10.0.0.3,+1 - up\nP3 net0 - - - - - - up\n",
		true: "VM NIC INTERFACE TYPE SOURCE MODEL MAC IP QUEUES VHOST FROM TO STATE\n" +
			"P2 net0 - - - - - 10.0.0.2(lease,neighbour);10.0.0.3(agent);fd00::2(agent);fe80::2(neighbour)" +
			" - - 2.00K 0 up\nP3 net0 - - - - - - - - - - up\n",
	} {
		var out bytes.Buffer
		if err := (&app{out: &out}).printList(nics, wide); err != nil {
			t.Fatal(err)
		}
		got := regexp.MustCompile(` +`).ReplaceAllString(out.String(), " ")
		if got != want {
			t.Errorf("wide %v:\n%s\nwant\n%s", wide, got, want)
		}
	}
}

// TestListOwner: the column appears only if a NIC has an owner.
func TestListOwner(t *testing.T) {
	nics := []nic.NIC{{VM: "P2", ID: "net0"}, {VM: "P3", ID: "net0"}}
	for uid, want := range map[int][]string{
		0:         {"STATE", "-", "-"},
		3_999_999: {"OWNER", "-", "3999999"}, // of no user
	} {
		nics[1].UID = uid
		var out bytes.Buffer
		if err := (&app{out: &out}).printList(sightings(nics), false); err != nil {
			t.Fatal(err)
		}
		var last []string
		for line := range strings.Lines(out.String()) {
			fields := strings.Fields(line)
			last = append(last, fields[len(fields)-1])
		}
		if !slices.Equal(last, want) {
			t.Errorf("uid %d: the last column is %q, want %q", uid, last, want)
		}
	}
}

// TestShowGone: for a deleted device, show prints no property that only an existing one has.
func TestShowGone(t *testing.T) {
	for _, n := range []nic.NIC{
		{
			VM: "P2", ID: "net0", Interface: "P2-net0", Type: nic.TypeTap, Source: "br0", Model: "virtio-net-pci",
			MAC: "52:54:00:00:00:01", Queues: 1, State: nic.Gone,
		},
		{
			VM: "P2", ID: "net1", Interface: "P2-net1", Type: "macvtap", Source: "eth0", Mode: "bridge",
			Model: "virtio-net-pci", MAC: "52:54:00:00:00:02", Queues: 2, State: nic.Gone,
		},
	} {
		var names []string
		for _, f := range detailFields(tapmgr.Detail{
			NIC:   n,
			Guest: &tapmgr.GuestView{Device: "vmnet-" + n.ID, Plugged: true},
		}) {
			names = append(names, f.key)
			if f.key == "interface" && f.value != n.Interface+" ("+n.Type+"), deleted" ||
				strings.Contains(f.value, "should be") || strings.HasPrefix(f.value, ",") {
				t.Errorf("%s: %q", f.key, f.value)
			}
		}
		place := map[string]string{nic.TypeTap: "bridge", "macvtap": "lower"}[n.Type]
		if want := []string{
			"interface", "state", place, "model", "MAC", "queues", "held by",
			"guest's view",
		}; !slices.Equal(names, want) {
			t.Errorf("fields %q, want %q", names, want)
		}
	}
}
