package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmnet/internal/ovstest"
)

// TestLiveForeignRows: what others have left in Open vSwitch's database goes once somebody has said
// yes, a thousand ports within a second.
func TestLiveForeignRows(t *testing.T) {
	o := ovstest.New(t, nil)
	o.Vsctl("--no-wait", "add-br", "br-int", "--", "add-port", "br-int", "lo", "--", "add-port", "br-int", "gre0", "--",
		"set", "Interface", "gre0", "type=gre")
	args := []string{"--no-wait"}
	const rows = 1000
	for i := range rows {
		args = append(args, "--", "add-port", "br-int", fmt.Sprint("gone", i))
	}
	o.Vsctl(args...)
	reconcile := func(answer string, more ...string) (code int, stdout, stderr string) {
		var out, err bytes.Buffer
		line := append([]string{"reconcile", "--foreign-rows", "--ovsdb", o.Socket()}, more...)
		code = run(t.Context(), line, strings.NewReader(answer), &out, &err)
		return code, out.String(), err.String()
	}
	left := func() int { return len(strings.Fields(o.Vsctl("list-ports", "br-int"))) }
	for _, answer := range []string{"", "n\n", "yess\n", strings.Repeat("y", 1000)} {
		code, out, text := reconcile(answer)
		if code != exitFailure || out != "" || !strings.Contains(text, "Remove 1000 ports from Open vSwitch? [y/N]") ||
			!strings.Contains(text, "and 980 more") || !strings.Contains(text, "nobody answered yes") {
			t.Fatalf("answer %.10q: exit status %d, %s%s", answer, code, out, text)
		}
	}
	code, out, _ := reconcile("", "--dry-run")
	if n := strings.Count(out, "would be port of br-int removed"); code != 0 || n != rows {
		t.Errorf("dry run: exit status %d, %d lines", code, n)
	}
	if left() != rows+2 {
		t.Fatalf("%d ports", left())
	}
	start := time.Now()
	code, out, text := reconcile("y\n")
	took := time.Since(start)
	t.Logf("%d rows were removed after %v", rows, took)
	if code != 0 || strings.Count(out, "its device has gone") != rows {
		t.Errorf("exit status %d, %d lines, %s", code, strings.Count(out, "\n"), text)
	}
	if took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	if ports := o.Vsctl("list-ports", "br-int"); ports != "gre0\nlo" {
		t.Errorf("left: %q", ports)
	}
	if code, out, _ := reconcile("", "--yes"); code != 0 || out != "nothing to do\n" {
		t.Errorf("again: exit status %d, %s", code, out)
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"reconcile", "--yes"}, nil, &stdout, &stderr); code != exitUsage {
		t.Errorf("--yes alone: exit status %d", code)
	}
}
