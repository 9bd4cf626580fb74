// Program report prints the figures of `make arch`: the structure of the module in the working
// directory. It fails if a program links a package that it must not link.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/arch"
)

func main() {
	if dir := os.Getenv(tracedEnv); dir != "" {
		if err := traced(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	covers := flag.Bool("coverage", true, "run the tests of the rooms of tapmgr that need no root")
	traces := flag.Bool("trace", os.Geteuid() == 0, "run the verbs in namespaces of their own: needs root and QEMU")
	verbose := flag.Bool("v", false, "list the files to open")
	flag.Parse()
	if err := report(os.Stdout, *covers, *traces, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "arch:", err)
		os.Exit(1)
	}
}

func report(w io.Writer, covers, traces, verbose bool) error {
	m, err := arch.Load(".")
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "Lines by package, without and of tests; files; the largest knot of files that need each other")
	if err := packages(w, m); err != nil {
		return err
	}
	fmt.Fprintln(w,
		"\nFiles to open to understand a verb: those in its program, tapmgr, inventory and its own rooms that declare a")
	fmt.Fprintln(w,
		"function which the static call graph reaches (through an interface: in each type that has it); and of")
	fmt.Fprintln(w, "the whole module")
	if err := verbs(w, m, verbose); err != nil {
		return err
	}
	if traces {
		fmt.Fprintln(w,
			"\nFiles with code that ran, with one bridge and one guest; in the same rooms, and in the whole module")
		if err := trace(w, verbose, "./..."); err != nil {
			return err
		}
	}
	fmt.Fprintln(w, "\nPrograms: bytes, packages of this module, all packages")
	if err := programs(w, m.Path); err != nil {
		return err
	}
	if covers {
		fmt.Fprintln(w, "\nCovered by tests that need neither root nor a guest")
		return coverage(w)
	}
	return nil
}

func packages(w io.Writer, m *arch.Module) error {
	names := make([]string, 0, len(m.Packages))
	arrows, lines, tests := 0, 0, 0
	for name, p := range m.Packages {
		names = append(names, name)
		for _, i := range p.Imports {
			if m.Packages[i] != nil {
				arrows++
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		p := m.Packages[name]
		dir := strings.TrimPrefix(name, m.Path+"/")
		n, err := testLines(dir)
		if err != nil {
			return err
		}
		knot := len(m.Knot(p))
		fmt.Fprintf(w, "  %6d %6d  %3d %3d  %s\n", p.Lines, n, len(p.Files), knot, dir)
		lines, tests = lines+p.Lines, tests+n
	}
	fmt.Fprintf(w, "  %6d %6d  in %d packages\n", lines, tests, len(names))
	fmt.Fprintf(w, "  %d arrows between packages, all of them down (TestImportsPointDown); cycles: none\n", arrows)
	return nil
}

func testLines(dir string) (n int, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		n += bytes.Count(text, []byte("\n"))
	}
	return n, err
}

func verbs(w io.Writer, m *arch.Module, verbose bool) error {
	g := m.Graph()
	for _, v := range arch.Verbs {
		rooms, all, err := m.FilesToOpen(g, v)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "  %6d %6d  %s\n", len(rooms), len(all), v.Name)
		if verbose {
			fmt.Fprintln(w, "                "+strings.Join(rooms, "\n                "))
		}
	}
	return nil
}

// programs builds each program as for a release, and checks what it links.
func programs(w io.Writer, module string) error {
	dir, err := os.MkdirTemp("", "vmnet-arch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := output("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/",
		"./cmd/..."); err != nil {
		return err
	}
	built, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	linked := map[string][]string{}
	for _, program := range built {
		info, err := program.Info()
		if err != nil {
			return err
		}
		name := "cmd/" + program.Name()
		if linked[name], err = arch.Linked(".", name); err != nil {
			return err
		}
		own := 0
		for _, p := range linked[name] {
			if strings.HasPrefix(p, module+"/") {
				own++
			}
		}
		fmt.Fprintf(w, "  %9d  %3d %4d  %s\n", info.Size(), own, len(linked[name]), program.Name())
	}
	broken := 0
	for _, f := range arch.ForbiddenLinks {
		state := "does not link"
		switch in := f.In(linked[f.Program]); {
		case in && f.NotYet:
			state = "still links"
		case in:
			state = "LINKS"
			broken++
		}
		fmt.Fprintf(w, "  %s %s %s (%s)\n", filepath.Base(f.Program), state, f.Package, f.Why)
	}
	if broken > 0 {
		return fmt.Errorf("%d forbidden links (internal/arch/links.go)", broken)
	}
	return nil
}
