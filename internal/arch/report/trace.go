package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmnet/internal/arch"
)

// tracedEnv makes this program the traced process in its namespaces. Its value is the directory
// with the programs.
const tracedEnv = "VMNET_ARCH_TRACE"

// mostFiles is how many files one may have to open to follow a verb.
const mostFiles = 20

// A run is one call of a program in a trace.
type run struct {
	verb  string // whose files are counted; empty for a preparation
	argv  []string
	stdin string
	fails bool // a launch whose last execve(2) fails: a program that another one replaces leaves no record
}

// domain is the XML that libvirt passes to its hook for a guest with a declared NIC.
const domain = `<domain type='qemu'><name>P3</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid>
<metadata><vmnet:nics xmlns:vmnet="urn:vmnet:nics:1"><vmnet:nic id="net0" bridge="br0"/></vmnet:nics></metadata>
<devices><interface type='ethernet'><mac address='52:54:00:00:01:01'/><target dev='P3-net0' managed='no'/>
<model type='virtio'/><alias name='ua-vmnet-net0'/></interface></devices></domain>`

// runs are the commands of an administrator with one bridge and one guest.
var runs = []run{
	{"", []string{"vmnet", "bridge", "create", "br0"}, "", false},
	{"vmnet attach", []string{"vmnet", "attach", "--vm", "P2", "--bridge", "br0"}, "", false},
	{"vmnet list", []string{"vmnet", "list"}, "", false},
	{"vmnet reconcile", []string{"vmnet", "reconcile"}, "", false},
	{"vmnet detach", []string{"vmnet", "detach", "--vm", "P2", "--nic", "net0"}, "", false},
	{"vmnet-hook", []string{"vmnet-hook", "P3", "prepare", "begin", "-"}, domain, false},
	{
		"qemu-netup",
		[]string{"front/qemu-netup", "--vm", "P4", "--bridge", "br0", "--", "./qemu-system-x86_64"},
		"",
		true,
	},
	{
		"qemu-netup",
		[]string{"qemu-netup-full", "--vm", "P4", "--bridge", "br0", "--", "./qemu-system-x86_64"},
		"",
		true,
	},
}

// idle are calls of the programs that do nothing: the code that runs in them belongs to no verb.
var idle = map[string][]string{"vmnet": {"version"}, "vmnet-hook": {}, "qemu-netup-full": {"--version"}}

// trace runs the programs in new namespaces beside a real QEMU whose guest is paused. For each verb
// it prints how many files of the packages of the module that match have code that ran: of the
// verb's packages, and of all.
func trace(w io.Writer, verbose bool, packages ...string) error {
	dir, err := os.MkdirTemp("", "vmnet-arch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for at, programs := range map[string][]string{
		"/":       {"./cmd/vmnet", "./cmd/vmnet-hook", "./cmd/qemu-netup-full"},
		"/front/": {"./cmd/qemu-netup"}, // which does not find the other beside itself, and leaves its record
	} {
		args := []string{"go", "build", "-cover", "-coverpkg=" + strings.Join(packages, ","), "-o", dir + at}
		args = append(args, programs...)
		if _, err := output(args...); err != nil {
			return err
		}
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	self := exec.Command("unshare", "--net", "--mount-proc", "--pid", "--fork", "--kill-child", program)
	self.Dir, self.Env = dir, append(os.Environ(), tracedEnv+"="+dir)
	if out, err := self.CombinedOutput(); err != nil {
		return fmt.Errorf("run the verbs: %w: %s", err, out)
	}
	var tooMany []string
	for _, v := range arch.Verbs {
		all, err := ran(dir, v.Name)
		if err != nil {
			return err
		}
		rooms := slices.DeleteFunc(slices.Clone(all), func(file string) bool {
			return !arch.Under(filepath.Dir(file), v.Rooms)
		})
		fmt.Fprintf(w, "  %6d %6d  %s\n", len(rooms), len(all), v.Name)
		if len(rooms) > mostFiles {
			tooMany = append(tooMany, v.Name)
		}
		if verbose {
			fmt.Fprintln(w, "                "+strings.Join(rooms, "\n                "))
		}
	}
	if len(tooMany) > 0 {
		return fmt.Errorf("over %d files: %s (cut or merge files by what they are about)",
			mostFiles, strings.Join(tooMany, ", "))
	}
	return nil
}

// ran returns the files with a block that ran in the verb, but not in an idle call.
func ran(dir, verb string) (files []string, err error) {
	program := strings.Fields(verb)[0]
	if program == "qemu-netup" { // what does the work
		program += "-full"
	}
	none, err := profile(filepath.Join(dir, recordOf("idle "+program)))
	if err != nil {
		return nil, err
	}
	blocks, err := profile(filepath.Join(dir, recordOf(verb)))
	for block := range blocks {
		if !none[block] {
			file, _, _ := strings.Cut(strings.TrimPrefix(block, "vmnet/"), ":")
			files = append(files, file)
		}
	}
	slices.Sort(files)
	return slices.Compact(files), err
}

// profile returns the blocks that ran, as "FILE:RANGE", from the records in a directory.
func profile(dir string) (map[string]bool, error) {
	text := dir + ".txt"
	if _, err := output("go", "tool", "covdata", "textfmt", "-i="+dir, "-o="+text); err != nil {
		return nil, err
	}
	blocks := map[string]count{}
	if err := merge(blocks, text); err != nil {
		return nil, err
	}
	ran := map[string]bool{}
	for block, c := range blocks {
		if c.run > 0 {
			ran[block] = true
		}
	}
	return ran, nil
}

// traced runs the programs; it is the first process of the namespaces.
func traced(dir string) error {
	if err := os.WriteFile("qemu-system-x86_64", []byte("neither ELF nor a script\n"), 0o755); err != nil {
		return err
	}
	for program, args := range idle {
		_ = call(dir, run{"idle " + program, append([]string{program}, args...), "", false})
	}
	qemu := exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-machine",
		"pc-q35-6.0,accel=tcg",
		"-device", "pcie-root-port,id=spare", "-name", "guest=P2", "-qmp", "unix:qmp,server=on,wait=off")
	if err := qemu.Start(); err != nil {
		return err
	}
	defer func() { _, _ = qemu.Process.Kill(), qemu.Wait() }()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat("qmp"); err == nil {
			break
		} else if time.Now().After(end) {
			return fmt.Errorf("QEMU does not listen: %w", err)
		}
	}
	for _, r := range runs {
		if err := call(dir, r); err != nil {
			return err
		}
	}
	return nil
}

// recordOf returns the directory in which programs record the code that ran.
func recordOf(verb string) string { return "ran in " + verb }

// call runs a program, which leaves its record in a directory named after the verb.
func call(dir string, r run) error {
	record := filepath.Join(dir, recordOf(r.verb))
	if err := os.MkdirAll(record, 0o755); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(dir, r.argv[0]), r.argv[1:]...)
	cmd.Stdin = strings.NewReader(r.stdin)
	cmd.Env = append(os.Environ(), "GOCOVERDIR="+record, tracedEnv+"=")
	out, err := cmd.CombinedOutput()
	if status := (*exec.ExitError)(nil); r.fails && errors.As(err, &status) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("%q: %w: %s", r.argv, err, out)
	}
	return nil
}
