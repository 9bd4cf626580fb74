package leaktest_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

// doEnv makes a test program do something other than its tests.
const doEnv = "VMNET_LEAKTEST_DO"

func TestMain(m *testing.M) {
	if what := os.Getenv(doEnv); what != "" {
		if strings.HasPrefix(what, "userns-") {
			leaktest.EncloseInUserNS()
		} else {
			leaktest.Enclose()
		}
		if err := do(strings.TrimPrefix(what, "userns-")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	leaktest.Main(m)
}

// ordinaryUser is an id without privileges.
const ordinaryUser = 65534

// do does what a package's tests might do.
func do(what string) error {
	switch what {
	case "nothing":
		return nil
	case "patience":
		time.Sleep(time.Second) // not a wait: what runs beside it ends in the meantime
		return nil
	case "process":
		cmd := exec.Command("sleep", "600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd.Start()
	case "link":
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "forgotten"}, PeerName: "peer0"})
	case "file":
		return os.WriteFile(filepath.Join(os.TempDir(), "forgotten"), nil, 0o600)
	case "run":
		return os.WriteFile("/run/forgotten", nil, 0o600)
	case "inherited":
		return inherited()
	case "own":
		if err := ownNamespaces(); err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
	case "namespaces":
		return ownNamespaces()
	case "hang":
		fmt.Println("hangs")
		time.Sleep(time.Hour) // not a wait: it hangs
	}
	return fmt.Errorf("do %q: unknown", what)
}

// inherited returns an error for anything that an enclosed program, or one that it starts, has
// inherited from the process that started the tests.
func inherited() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGUSR1} {
		if signal.Ignored(s) {
			return fmt.Errorf("%s is ignored:\n%s", s, status)
		}
	}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err == nil && target == "/dev/null" && filepath.Base(fd) > "2" {
			return fmt.Errorf("fd %s is inherited", fd)
		}
	}
	out, err := exec.Command("sh", "-c", "umask; ulimit -Sn; echo \"$NO_COLOR\"").Output()
	if err != nil {
		return err
	}
	if got := strings.Fields(string(out)); len(got) != 2 || got[0] != "0022" || len(got[1]) < 4 {
		return fmt.Errorf("umask, limit of open files and NO_COLOR are %q", got)
	}
	if pids, _ := filepath.Glob("/proc/[0-9]*"); os.Geteuid() == 0 && len(pids) > 2 {
		return fmt.Errorf("other processes are seen: %s", pids)
	}
	return nil
}

// ownNamespaces returns an error unless an ordinary user's tests are root in namespaces of their
// own.
func ownNamespaces() error {
	if in, err := leaktest.UserNS(); !in || os.Geteuid() != 0 {
		return fmt.Errorf("no user namespace, uid %d: %w", os.Geteuid(), err)
	}
	links, err := netlink.LinkList()
	if err != nil || len(links) != 1 || links[0].Attrs().OperState == netlink.OperDown {
		return fmt.Errorf("links %+v, %w", links, err)
	}
	if pids, _ := filepath.Glob("/proc/[0-9]*"); len(pids) > 2 {
		return fmt.Errorf("other processes are seen: %s", pids)
	}
	return nil
}

// enclosed returns a command that runs this program as go test does, to do that.
func enclosed(t *testing.T, what string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, leaktest.StageEnv+"=")
	})
	cmd.Env = append(cmd.Env, doEnv+"="+strings.TrimPrefix(what, "machine-"))
	if strings.HasPrefix(what, "machine-") {
		cmd.Env = append(cmd.Env, leaktest.PidsEnv+"="+leaktest.PidsMachine)
	}
	return cmd
}

func TestLiveWhatIsLeftIsNamed(t *testing.T) {
	nstest.RequireRoot(t)
	for what, want := range map[string]string{
		"nothing":         "",
		"process":         `processes still run: `,
		"machine-process": `processes still run: `,
		"link":            "links are still there: ",
		"file":            "files are still there: /tmp/forgotten",
		"run":             "files are still there: /run/forgotten",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			out, err := enclosed(t, what).CombinedOutput()
			if !strings.Contains(string(out), want) || (err == nil) != (want == "") {
				t.Errorf("got %v and %q, want %q", err, out, want)
			}
			for _, name := range map[string][]string{
				"process": {"sleep 600"}, "machine-process": {"sleep 600"},
				"link": {"forgotten", "peer0"},
			}[what] {
				if !strings.Contains(string(out), name) {
					t.Errorf("%q does not name %s", out, name)
				}
			}
		})
	}
	if _, err := os.Stat("/tmp/forgotten"); err == nil {
		t.Error("the enclosed program's /tmp is this one")
	}
}

// The shell ignores signals, and has fds, a umask, a limit and variables of its own.
func TestNothingIsInherited(t *testing.T) {
	cmd := enclosed(t, "inherited")
	cmd.Args = []string{
		"sh", "-c",
		`trap '' HUP INT QUIT PIPE USR1; umask 077; ulimit -Sn 64; exec 7</dev/null 8</dev/null; exec "$0"`, cmd.Path,
	}
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, "NO_COLOR=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestUserNS: an ordinary user's tests run as root of namespaces of their own, and what they leave
// there is named.
func TestUserNS(t *testing.T) {
	program := readableCopy(t)
	run := func(what string) (string, error) {
		cmd := enclosed(t, "userns-"+what)
		cmd.Path = program
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
				Uid: ordinaryUser,
				Gid: ordinaryUser,
			}}
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, _ := run("namespaces")
	nstest.Require(t, "userns", !strings.Contains(out, "no user namespace"), out)
	for what, want := range map[string]string{
		"nothing": "", "own": "links are still there: br0",
		"file": "files are still there: /tmp/forgotten",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			if out, err := run(what); !strings.Contains(out, want) || (err == nil) != (want == "") {
				t.Errorf("got %v and %q, want %q", err, out, want)
			}
		})
	}
}

// readableCopy returns the path of a copy of this program that every user may run.
func readableCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "readable")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "program")
	program, err := os.ReadFile("/proc/self/exe")
	if err = errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(path, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// Everything that runs ends with the process that go test started, even if SIGKILL ends that one.
func TestLiveKilled(t *testing.T) {
	nstest.RequireRoot(t)
	for _, s := range []os.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGINT} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd := enclosed(t, "hang")
			cmd.Stdout = w
			err = cmd.Start()
			_ = w.Close()
			if err != nil {
				t.Fatal(err)
			}
			hello := make([]byte, 64)
			n, err := r.Read(hello)
			if err != nil || !bytes.Contains(hello[:n], []byte("hangs")) {
				t.Fatalf("got %q, %v", hello[:n], err)
			}
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			// The last process that can write has ended when the pipe does.
			if _, err := r.Read(hello); err == nil || os.IsTimeout(err) {
				t.Errorf("a process is left after %s: %v", s, err)
			}
		})
	}
}
