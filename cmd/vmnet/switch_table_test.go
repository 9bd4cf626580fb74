package main

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
)

// TestPortTable compares the table of a port's settings in package vport with the options, the
// fields and the functions that it names.
func TestPortTable(t *testing.T) {
	const dir = "../../bridge/vswitch/"
	source, err := os.ReadFile(dir + "vport/config.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(source), "acts in\n")
	table, _, _ = strings.Cut(table, "//\n")
	var options, fields []string
	for line := range strings.Lines(table) {
		columns := regexp.MustCompile(` {2,}`).Split(strings.TrimSpace(strings.TrimPrefix(line, "//\t")), 3)
		options = append(options, strings.FieldsFunc(columns[0], func(r rune) bool {
			return strings.ContainsRune(", ", r)
		})...)
		if len(columns) < 3 {
			continue
		}
		fields = append(fields, strings.Split(columns[1], ", ")...)
		for place := range strings.SplitSeq(columns[2], "; ") {
			file, functions, _ := strings.Cut(place, ": ")
			code, err := os.ReadFile(dir + file)
			if err != nil {
				t.Error(err)
			}
			for f := range strings.SplitSeq(functions, ", ") {
				if !regexp.MustCompile(fmt.Sprintf(`(?m)^func .*\b%s\(`, f)).Match(code) {
					t.Errorf("%s has no function %s", file, f)
				}
			}
		}
	}
	w := wantedPort{Port: control.Port{Kind: control.Tap}}
	w.options().VisitAll(func(f *pflag.Flag) {
		if f.Name != "name" && f.Name != "queues" && !slices.Contains(options, f.Name) { // these two are not in Config
			t.Errorf("option %s is not in the table", f.Name)
		}
	})
	for _, f := range reflect.VisibleFields(reflect.TypeFor[vport.Config]()) {
		if !f.Anonymous && f.Name != "Other" && !slices.Contains(fields, f.Name) { // no request has Other
			t.Errorf("field %s is not in the table", f.Name)
		}
	}
	if len(options) < 15 || len(fields) < 12 {
		t.Errorf("the table has %d options and %d fields", len(options), len(fields))
	}
}
