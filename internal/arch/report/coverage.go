package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/arch"
)

// nobody runs the tests where this program is root's.
const nobody = 65534

// count is how many statements there are, and how many have run.
type count struct{ all, run int }

// rooms are what package tapmgr once was, each with the packages below it.
var rooms = []string{"tapmgr", "internal/inventory", "internal/hostaccess", "internal/guest", "internal/backend"}

// totals are what is added up, and the percentage under which the report fails.
var totals = []struct {
	name  string
	rooms []string
	least float64
}{
	{"tapmgr and inventory", rooms[:2], 60},
	{"with host access and the guest's part", rooms[:4], 60},
	{"with the host's part too: all that was tapmgr", rooms, 60},
}

// coverage prints how much of these rooms their tests cover that need neither root nor a guest, run
// as an ordinary user.
func coverage(w io.Writer) error {
	dir, err := os.MkdirTemp("", "vmnet-arch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "out")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(out, 0o777), os.Chmod(out, 0o777)); err != nil {
		return err
	}
	var patterns, covered []string
	for _, room := range rooms {
		if _, err := os.Stat(room); err == nil {
			patterns, covered = append(patterns, "./"+room+"/..."), append(covered, "vmnet/"+room+"/...")
		}
	}
	const format = "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}"
	packages, err := output(append([]string{"go", "list", "-f", format}, patterns...)...)
	if err != nil {
		return err
	}
	blocks := map[string]count{}
	for line := range strings.Lines(packages) {
		importPath, src, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		program := filepath.Join(dir, strings.ReplaceAll(importPath, "/", "-")+".test")
		of := "-coverpkg=" + strings.Join(covered, ",")
		if _, err := output("go", "test", "-c", "-cover", of, "-o", program, importPath); err != nil {
			return err
		}
		profile := filepath.Join(out, filepath.Base(program))
		if err := runTest(program, src, profile); err != nil {
			return err
		}
		if err := merge(blocks, profile); err != nil {
			return err
		}
	}
	return printCoverage(w, blocks)
}

// printCoverage prints the percentage of each package and of the totals.
func printCoverage(w io.Writer, blocks map[string]count) error {
	of := map[string]count{}
	for block, c := range blocks {
		pkg := strings.TrimPrefix(path.Dir(block), "vmnet/")
		of[pkg] = of[pkg].plus(c)
	}
	for _, pkg := range slices.Sorted(maps.Keys(of)) {
		fmt.Fprintf(w, "  %5.1f%%  %s\n", of[pkg].percent(), pkg)
	}
	var errs []error
	for _, t := range totals {
		total := count{}
		for pkg, c := range of {
			if arch.Under(pkg, t.rooms) {
				total = total.plus(c)
			}
		}
		fmt.Fprintf(w, "  %5.1f%%  of %d statements: %s\n", total.percent(), total.all, t.name)
		if total.percent() < t.least {
			errs = append(errs, fmt.Errorf("tests without root cover %.1f%% of %s (want %.0f%%)",
				total.percent(), t.name, t.least))
		}
	}
	return errors.Join(errs...)
}

func (c count) plus(d count) count { return count{c.all + d.all, c.run + d.run} }

func (c count) percent() float64 { return 100 * float64(c.run) / float64(max(c.all, 1)) }

// runTest runs a package's tests without root and with a log that is only shown if one fails.
func runTest(program, dir, profile string) error {
	argv := []string{program, "-test.skip=^TestLive|^TestLab", "-test.timeout=5m", "-test.coverprofile=" + profile}
	if os.Geteuid() == 0 {
		var err error
		if argv, err = asNobody(filepath.Dir(program), argv); err != nil {
			return err
		}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	// A test that is skipped covers nothing, and its failure says how to run it.
	cmd.Env = append(os.Environ(), "HOME=/nonexistent", "VMNET_REQUIRE=userns,tun")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (an ordinary user must be able to read the tree: run make arch as one)", err)
	}
	if err != nil {
		return fmt.Errorf("tests in %s: %w\n%s", dir, err, out)
	}
	return nil
}

// asNobody returns the command line that runs another as an ordinary user, who sees /dev/net/tun as
// udev makes it: for everybody (50-udev-default.rules). A container's may be root's alone.
func asNobody(dir string, argv []string) ([]string, error) {
	node := filepath.Join(dir, "tun")
	if _, err := os.Stat(node); errors.Is(err, fs.ErrNotExist) {
		if _, err := output("mknod", "--mode=666", node, "c", "10", "200"); err != nil {
			return nil, err
		}
	}
	const script = `mount --bind "$0" /dev/net/tun && exec setpriv --reuid="$1" --regid="$1" --clear-groups "${@:2}"`
	return append([]string{"unshare", "--mount", "bash", "-c", script, node, strconv.Itoa(nobody)}, argv...), nil
}

// merge adds a profile's blocks, each of which may be in several profiles: lines "FILE:RANGE
// STATEMENTS RUNS".
func merge(blocks map[string]count, profile string) error {
	f, err := os.Open(profile)
	if err != nil {
		return err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) != 3 { // mode: set
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			return fmt.Errorf("%s: %w", profile, err)
		}
		c := count{all: n, run: blocks[fields[0]].run}
		if fields[2] != "0" {
			c.run = n
		}
		blocks[fields[0]] = c
	}
	return nil
}

func output(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}
