package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// nobody runs the tests where this program is root's.
const nobody = 65534

// count is how many statements there are, and how many have run.
type count struct{ all, run int }

// coverage prints how much of tapmgr and inventory the tests cover that need neither root nor a
// guest, run as an ordinary user.
func coverage(w io.Writer) error {
	dir, err := os.MkdirTemp("", "vmnet-arch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	packages, err := output("go", "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}",
		"./tapmgr/...", "./internal/inventory/...")
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "out"), 0o777),
		os.Chmod(filepath.Join(dir, "out"), 0o777)); err != nil {
		return err
	}
	blocks := map[string]count{}
	for line := range strings.Lines(packages) {
		importPath, src, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		program := filepath.Join(dir, strings.ReplaceAll(importPath, "/", "-")+".test")
		if _, err := output("go", "test", "-c", "-cover", "-coverpkg=vmnet/tapmgr/...,vmnet/internal/inventory/...",
			"-o", program, importPath); err != nil {
			return err
		}
		profile := filepath.Join(dir, "out", filepath.Base(program))
		if err := runTest(program, src, profile); err != nil {
			return err
		}
		if err := merge(blocks, profile); err != nil {
			return err
		}
	}
	total, of := count{}, map[string]count{}
	for block, c := range blocks {
		pkg := path.Dir(block)
		of[pkg] = count{of[pkg].all + c.all, of[pkg].run + c.run}
		total = count{total.all + c.all, total.run + c.run}
	}
	names := make([]string, 0, len(of))
	for pkg := range of {
		names = append(names, pkg)
	}
	slices.Sort(names)
	for _, pkg := range names {
		fmt.Fprintf(w, "  %5.1f%%  %s\n", percent(of[pkg]), strings.TrimPrefix(pkg, "vmnet/"))
	}
	fmt.Fprintf(w, "  %5.1f%%  of %d statements\n", percent(total), total.all)
	return nil
}

func percent(c count) float64 { return 100 * float64(c.run) / float64(max(c.all, 1)) }

// runTest runs a package's tests without root, and shows their output only if one fails.
func runTest(program, dir, profile string) error {
	cmd := exec.Command(program, "-test.skip=^TestLive|^TestLab", "-test.timeout=5m", "-test.coverprofile="+profile)
	cmd.Dir = dir
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Env = append(os.Environ(), "HOME=/nonexistent")
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (an ordinary user must be able to read the tree: run make arch as one)", err)
	}
	if err != nil {
		return fmt.Errorf("tests in %s: %w\n%s", dir, err, out)
	}
	return nil
}

// merge adds the blocks of a profile, lines "FILE:RANGE STATEMENTS RUNS". A block may be in several
// profiles.
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
