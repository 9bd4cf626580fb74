package vswitch

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocNamesFunctions checks the documentation's table of a frame's path: the files have the
// functions beside them, and the reasons are those of reason.go, all of them.
func TestDocNamesFunctions(t *testing.T) {
	steps, missing := 0, reasonNames(t)
	known := strings.Join(missing, " ")
	for _, columns := range docTable(t, "step", "function", "files", "drops with") {
		step, function, files := columns[0], columns[1], columns[2]
		if files != "" {
			steps++
			if !defines(t, files, function) {
				t.Errorf("%s: no file of %q has %s", step, files, function)
			}
		}
		for _, reason := range regexp.MustCompile(`\w+`).FindAllString(columns[3], -1) {
			if !regexp.MustCompile(`\b` + reason + `\b`).MatchString(known) {
				t.Errorf("%s: reason.go has no reason %s", step, reason)
			}
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == reason })
		}
	}
	if steps < 20 {
		t.Errorf("the table has %d steps", steps)
	}
	if len(missing) > 0 {
		t.Errorf("no step drops with %v", missing)
	}
}

// docTable returns the rows of the table in doc.go that has these columns. Each column begins below
// its name.
func docTable(t *testing.T, names ...string) (rows [][]string) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var starts []int
	for line := range strings.Lines(string(text)) {
		row, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "//\t")
		switch {
		case !ok && starts != nil:
			return rows
		case ok && starts == nil && slices.Equal(regexp.MustCompile(` {2,}`).Split(row, -1), names):
			for _, name := range names {
				starts = append(starts, strings.Index(row, name))
			}
		case starts != nil:
			var columns []string
			for i, start := range starts {
				end := len(row)
				if i+1 < len(starts) {
					end = starts[i+1]
				}
				columns = append(columns, strings.TrimSpace(row[min(start, len(row)):min(end, len(row))]))
			}
			rows = append(rows, columns)
		}
	}
	t.Fatalf("doc.go has no table of %v", names)
	return nil
}

// defines reports whether one of the files defines a method, written TYPE.METHOD.
func defines(t *testing.T, files, method string) bool {
	receiver, name, _ := strings.Cut(method, ".")
	method = fmt.Sprintf(`(?m)^func \((\w+ )?\*?%s\) %s\(`, receiver, name)
	for _, file := range regexp.MustCompile(`\w+\.go`).FindAllString(files, -1) {
		code, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		if regexp.MustCompile(method).Match(code) {
			return true
		}
	}
	return false
}

// reasonNames returns the names of the reasons for which a frame is dropped.
func reasonNames(t *testing.T) (names []string) {
	code, err := os.ReadFile("reason.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(`(?m)^\tcase ([A-Z]\w+):`).FindAllSubmatch(code, -1) {
		if name := string(match[1]); name != "Delivered" {
			names = append(names, name)
		}
	}
	return append(names, "TooBig")
}
