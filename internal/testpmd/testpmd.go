// Package testpmd runs DPDK's testpmd for tests and benchmarks: as the guest of vhost-user
// frontends (virtio-user), and as a backend to compare with. testvm/setup.sh unpacks it.
package testpmd

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// Find returns the directory in which testpmd was unpacked.
func Find() (string, error) {
	var dirs []string
	own, err := testvm.CacheDir()
	if err == nil {
		dirs = append(dirs, own)
	}
	if os.Getenv("VMNET_CACHE") == "" {
		dirs = append(dirs, testvm.SystemCacheDir)
	}
	for _, dir := range dirs {
		dir = filepath.Join(dir, "dpdk")
		if _, err = os.Stat(program(dir)); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("find DPDK's testpmd: %w (run testvm/setup.sh --dpdk)", err)
}

func program(dir string) string { return filepath.Join(dir, "usr/bin/dpdk-testpmd") }

// Version returns the version of its package.
func Version() (string, error) {
	dir, err := Find()
	if err != nil {
		return "", err
	}
	f, err := os.Open(filepath.Join(dir, "usr/share/doc/dpdk-dev/changelog.Debian.gz"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return "", err
	}
	line, err := bufio.NewReader(z).ReadString('\n') // dpdk (22.11.11-0+deb12u1) bookworm; urgency=medium
	if err != nil {
		return "", err
	}
	_, version, _ := strings.Cut(line, "(")
	version, _, _ = strings.Cut(version, ")")
	return version, nil
}

// Require skips the test unless testpmd is there.
func Require(tb testing.TB) {
	tb.Helper()
	_, err := Find()
	nstest.Require(tb, "dpdk", err == nil, "run testvm/setup.sh --dpdk")
}

// Config says how a testpmd should be.
type Config struct {
	Dir     string   // for its own files
	Devices []string // of --vdev, one for each port
	CPUs    string   // on which it forwards, such as 0 or 0-3; empty for all
	Memory  int      // MiB; 0 means 64
	Mbufs   int      // 0 means 2048
	Args    []string // more arguments of testpmd
	Program []string // what runs it, such as nsenter with its arguments
}

// plugins are the libraries that have no name in the program: the drivers of both sides of
// vhost-user, and the default pool of buffers.
const plugins = "librte_mempool_ring.so.23 librte_net_virtio.so.23 librte_net_vhost.so.23"

// Environment returns the variables by which a program finds the unpacked libraries. It preloads
// the plug-ins, because DPDK refuses them in a directory that others may write to, such as one
// below /tmp.
func Environment(dir string) []string {
	return []string{
		"LD_LIBRARY_PATH=" + filepath.Join(dir, "usr/lib/x86_64-linux-gnu"), "LD_PRELOAD=" + plugins,
	}
}

// command returns a testpmd that takes commands, and flushes each line of its output.
func command(cfg Config) (*exec.Cmd, error) {
	dir, err := Find()
	if err != nil {
		return nil, err
	}
	if cfg.CPUs == "" {
		all, err := os.ReadFile("/sys/devices/system/cpu/online")
		if err != nil {
			return nil, err
		}
		cfg.CPUs = strings.TrimSpace(string(all))
	}
	memory, mbufs := max(cfg.Memory, 0), max(cfg.Mbufs, 0)
	if memory == 0 {
		memory = 64
	}
	if mbufs == 0 {
		mbufs = 2048
	}
	argv := append(cfg.Program[:len(cfg.Program):len(cfg.Program)], "stdbuf", "-oL", program(dir),
		"--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "-m", strconv.Itoa(memory),
		"--lcores", fmt.Sprintf("0@(%[1]s),1@(%[1]s)", cfg.CPUs))
	for _, d := range cfg.Devices {
		argv = append(argv, "--vdev", d)
	}
	argv = append(append(argv, "--", "-i", "--total-num-mbufs="+strconv.Itoa(mbufs)), cfg.Args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(append(os.Environ(), "RUNTIME_DIRECTORY="+cfg.Dir), Environment(dir)...)
	return cmd, nil
}

// A Testpmd is a testpmd that runs. Only one goroutine may use it.
type Testpmd struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	said  []string // its last lines, for errors
}

// patience bounds each command.
const patience = 60 * time.Second

// Start starts a testpmd, which waits for commands once its ports are ready. A device in server
// mode is ready when a backend has connected to it. It ends with this process, if not before, since
// its standard input does.
func Start(cfg Config) (*Testpmd, error) {
	cmd, err := command(cfg)
	if err != nil {
		return nil, err
	}
	p := &Testpmd{cmd: cmd, lines: make(chan string, 1024)}
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, outside, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = outside, outside
	err = errors.Join(cmd.Start(), outside.Close())
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	go func() {
		defer out.Close()
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	return p, nil
}

// PID is its process.
func (p *Testpmd) PID() int { return p.cmd.Process.Pid }

// Do runs commands, and returns what testpmd prints until they are done.
func (p *Testpmd) Do(commands ...string) (string, error) {
	for _, c := range append(commands, "set verbose 0") { // whose answer is the end
		if _, err := io.WriteString(p.in, c+"\n"); err != nil {
			return "", fmt.Errorf("testpmd: %q: %w; it said: %s", c, err, p.tail())
		}
	}
	var out strings.Builder
	for late := time.After(patience); ; {
		select {
		case line, ok := <-p.lines:
			switch {
			case !ok:
				return "", fmt.Errorf("testpmd has ended at %q; it said: %s", commands, p.tail())
			case strings.Contains(line, "verbose level from"):
				return out.String(), nil
			}
			p.said = append(p.said[max(0, len(p.said)-20):], line)
			out.WriteString(line + "\n")
		case <-late:
			return "", fmt.Errorf("testpmd does not answer %q; it said: %s", commands, p.tail())
		}
	}
}

func (p *Testpmd) tail() string { return strings.Join(p.said, " | ") }

// Counters are the frames of a port.
type Counters struct{ RxFrames, RxBytes, TxFrames, TxBytes uint64 }

var counted = regexp.MustCompile(`([RT])X-(packets|bytes): +(\d+)`)

// Counters returns those of a port since it was started.
func (p *Testpmd) Counters(port int) (c Counters, err error) {
	out, err := p.Do(fmt.Sprintf("show port stats %d", port))
	if err != nil {
		return c, err
	}
	at := map[string]*uint64{
		"Rpackets": &c.RxFrames, "Rbytes": &c.RxBytes, "Tpackets": &c.TxFrames, "Tbytes": &c.TxBytes,
	}
	found := counted.FindAllStringSubmatch(out, -1)
	for _, m := range found {
		*at[m[1]+m[2]], err = strconv.ParseUint(m[3], 10, 64)
		if err != nil {
			return c, err
		}
	}
	if len(found) != len(at) {
		return c, fmt.Errorf("testpmd's counters of port %d: %q", port, out)
	}
	return c, nil
}

// Kill sends SIGKILL and waits for the end.
func (p *Testpmd) Kill() {
	_ = p.cmd.Process.Kill()
	_, _ = p.Wait()
}

// Wait waits until it has ended, and returns how.
func (p *Testpmd) Wait() (*os.ProcessState, error) {
	_ = p.in.Close()
	for range p.lines { // so that it is not kept by a full pipe
	}
	err := p.cmd.Wait()
	return p.cmd.ProcessState, err
}

// Memory opens the file that is its memory, which it shares with its backends.
func (p *Testpmd) Memory() (*os.File, error) {
	dir := fmt.Sprintf("/proc/%d/fd", p.PID())
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "/memfd:") {
			return os.OpenFile(path, os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("testpmd %d has no memfd", p.PID())
}
