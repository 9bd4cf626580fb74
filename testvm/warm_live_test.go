package testvm

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLiveWarmGuests: guests that begin in one state differ in all that must differ, and each has
// its NICs.
func TestLiveWarmGuests(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	uuids := map[string]bool{}
	for name, nics := range map[string][]NIC{"P2": nil, "P3": {{Netdev: "user,restrict=on"}}} {
		vm := StartT(t, Config{Name: name, NICs: nics})
		if c := vm.config; c.Accel == "tcg" && !slices.Contains(vm.Argv, "-incoming") {
			t.Errorf("guest %s has booted", name)
		}
		for _, tt := range []struct{ want, program, arg string }{
			{name, "hostname", ""}, {time.Now().UTC().Format("2006-01-02"), "date", "+%F"},
		} {
			argv := slices.DeleteFunc([]string{tt.program, tt.arg}, func(s string) bool { return s == "" })
			if out, err := vm.Guest.Exec(ctx, argv...); err != nil || strings.TrimSpace(out) != tt.want {
				t.Errorf("guest %s: %s says %q, %v: want %s", name, tt.program, out, err, tt.want)
			}
		}
		links, err := vm.Guest.Links(ctx)
		if err != nil || len(links) != 1+len(nics) {
			t.Errorf("guest %s has %+v, %v", name, links, err)
		}
		uuid, err := vm.Guest.Exec(ctx, "cat", "/proc/sys/kernel/random/uuid")
		if err != nil || uuids[uuid] {
			t.Errorf("guest %s has the random numbers of another one: %s, %v", name, uuid, err)
		}
		uuids[uuid] = true
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, age time.Duration) {
		path, when := filepath.Join(dir, name), time.Now().Add(-age)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	for i := range warmKept + 3 {
		write(string(rune('a'+i)), time.Duration(i)*time.Minute)
	}
	write("z.lock", 0)
	write(".new-old", 2*time.Hour)
	write(".new-now", 0)
	prune(dir)
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := []string{".new-now"}
	for i := range warmKept - 1 {
		want = append(want, string(rune('a'+i)))
	}
	if want = append(want, "z.lock"); err != nil || !slices.Equal(names, want) {
		t.Errorf("%q, %v: want %q", names, err, want)
	}
}
