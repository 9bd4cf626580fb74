package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/internal/cli/version"
	"vmnet/internal/nstest"
)

// hookRun is a run of the hook without libvirt.
type hookRun struct {
	status     int // -1 where a signal has ended it
	told, said string
}

func finish(t *testing.T, cmd *exec.Cmd) hookRun {
	t.Helper()
	var out, told bytes.Buffer
	cmd.Stdout = &out
	if cmd.Stderr == nil {
		cmd.Stderr = &told
	}
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return hookRun{cmd.ProcessState.ExitCode(), told.String(), out.String()}
}

func direct(t *testing.T, path, stdin string, args ...string) hookRun {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	return finish(t, cmd)
}

// ops are libvirt's operations, and one that it does not have yet.
var ops = map[string]string{
	"migrate": "begin", "restore": "begin", "prepare": "begin", "start": "begin",
	"started": "begin", "reconnect": "begin",
	"attach": "begin", "stopped": "end", "release": "end", "later": "begin",
}

// TestQuiet: guests that are not ours, and operations that are not known, make no difference.
func TestQuiet(t *testing.T) {
	path := build(t)
	for op, sub := range ops {
		for _, xml := range []string{"", "<domain/>", "no XML", strings.Repeat(" ", 1<<20)} {
			if got := direct(t, path, xml, "web", op, sub, "-"); got != (hookRun{}) {
				t.Errorf("%s with %.20q: %+v", op, xml, got)
			}
		}
	}
	if got := direct(t, path, "urn:vmnet:nics:1", "web", "prepare", "end", "-"); got != (hookRun{}) {
		t.Errorf("prepare end: %+v", got)
	}
	if got := direct(t, path, "", "--version"); got != (hookRun{said: got.said}) ||
		!strings.HasPrefix(got.said, "vmnet-hook "+version.Number+" ") {
		t.Errorf("version: %+v", got)
	}
	for _, args := range [][]string{
		{},
		{"--help"},
		{"web", "prepare", "begin"},
		{"web", "prepare", "begin", "-", "-"},
	} {
		if got := direct(t, path, "", args...); got.status != 1 ||
			!strings.Contains(got.told, "libvirt calls a hook with GUEST OPERATION SUBOPERATION EXTRA") {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

// TestMalformed: what cannot be read keeps a guest from starting, and does nothing to one that
// runs.
func TestMalformed(t *testing.T) {
	path := build(t)
	refuses := map[string]bool{"migrate": true, "prepare": true, "start": true, "started": true}
	other := `<domain><name>other</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid><metadata>` +
		metadata() + `</metadata></domain>`
	for _, xml := range []string{"<domain>urn:vmnet:nics:1", "urn:vmnet:nics:1\x00\x1b[2J", other} {
		for op, sub := range ops {
			got := direct(t, path, xml, "no such guest", op, sub, "-")
			tells := refuses[op] || op == "reconnect"
			if (got.status == 1) != refuses[op] || got.said != "" ||
				tells != strings.HasPrefix(got.told, "vmnet-hook: "+op+" no such guest: ") {
				t.Errorf("%s: %+v", op, got)
			}
			if strings.Count(got.told, "\n") > 1 || strings.Contains(got.told, "\x1b") {
				t.Errorf("%s: more than one line, or unfit for a terminal: %q", op, got.told)
			}
		}
	}
}

// TestTimeOut: a libvirt that never ends its XML gets an answer all the same.
func TestTimeOut(t *testing.T) {
	path := build(t)
	for op, want := range map[string]int{"prepare": 1, "reconnect": 0} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			cmd := exec.Command(path, "web", op, "begin", "-")
			cmd.Stdin = r
			begin := time.Now()
			got := finish(t, cmd)
			if took := time.Since(begin); got.status != want || took < limit || took > limit+grace+patience ||
				!strings.Contains(got.told, "gave up") {
				t.Errorf("%+v after %v", got, took)
			}
		})
	}
}

// TestNobodyReads: the hook does its work although nobody reads what it says.
func TestNobodyReads(t *testing.T) {
	path := build(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_ = r.Close()
	for op, want := range map[string]int{"prepare": 1, "reconnect": 0} {
		cmd := exec.Command(path, "web", op, "begin", "-")
		cmd.Stdin, cmd.Stderr = strings.NewReader("urn:vmnet:nics:1"), w
		if got := finish(t, cmd); got.status != want {
			t.Errorf("%s: %+v", op, got)
		}
	}
}

// TestChild: however a child ends, its parent goes on.
func TestChild(t *testing.T) {
	for how, want := range map[string]string{
		"ok": "", "fails": "", "panic": "exit status 2: panic: a",
		"killed": "signal: killed",
	} {
		var told strings.Builder
		err := runChild([]string{how}, "<domain/>", &told)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", how, err)
		}
		if said := how == "fails"; said != (told.String() == "vmnet-hook: told\n") {
			t.Errorf("%s: it said %q", how, told.String())
		}
		h := &handler{args: []string{"web", "reconnect", "begin", "-"}, stderr: io.Discard}
		if status := h.end(err); status != 0 {
			t.Errorf("%s: status %d", how, status)
		}
	}
}

// fullDisk leaves no room anywhere that a program could write to; $1 is the hook, $2 its XML.
const fullDisk = `set -e
no() { if "$@" 2>&-; then echo "$* succeeds"; exit 9; fi; }
exec 8<"$1" 9<"$2"
hook() { /proc/$$/fd/8 web "$1" "$2" - </proc/$$/fd/9; }
mount -t sysfs none /sys
for d in /run /var /tmp /dev/shm; do [ ! -d $d ] || mount -t tmpfs -o size=4k,nr_inodes=1 none $d; done
no touch /tmp/more
ip link add br0 type bridge
ip link add eth1 type veth peer name far
ip link set eth1 up
hook prepare begin
ip -o link show web-0 | grep -q 'master br0'
[ -c /dev/tap$(cat /sys/class/net/web-1/ifindex) ]
hook release end
no ip -o link show web-0
no ip -o link show web-1
mount -t tmpfs -o nr_inodes=1 none /dev
if hook prepare begin; then exit 7; fi
no ip -o link show web-0
no ip -o link show web-1
echo all done
`

// TestLiveFullDisk: the hook needs no room on any disk; only where a macvtap's node cannot be made
// does it fail, and leaves nothing.
func TestLiveFullDisk(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	xml := filepath.Join(t.TempDir(), "xml")
	text := `<domain type='qemu'><name>web</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid><metadata>` +
		metadata(`<vmnet:nic id="net1" macvtap="eth1"/>`, `<vmnet:nic id="net0" bridge="br0"/>`) +
		`</metadata><devices>` +
		handed("web-0", "net0", 1, "") + handed("web-1", "net1", 2, "") + `</devices></domain>`
	if err := os.WriteFile(xml, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("unshare", "--net", "--mount", "sh", "-c", fullDisk, "sh", build(t), xml).CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "all done\n") ||
		!strings.Contains(string(out), "vmnet-hook: prepare web: prepare web/net1: node: mknod /dev/tap") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestLiveAllOrNothing: what was made goes by itself when a later NIC cannot be made, before
// libvirt asks for it.
func TestLiveAllOrNothing(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	text := `<domain type='qemu'><name>web</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid><metadata>` +
		metadata(`<vmnet:nic id="net0" bridge="br0"/>`, `<vmnet:nic id="net1" bridge="br7"/>`) +
		`</metadata><devices>` +
		handed("web-0", "net0", 1, "") + handed("web-1", "net1", 2, "") + `</devices></domain>`
	cmd := exec.Command("unshare", "--net", "sh", "-c",
		`ip link add br0 type bridge; "$1" web prepare begin -; echo status $?; ip -o link`, "sh", build(t))
	cmd.Stdin = strings.NewReader(text)
	got := finish(t, cmd)
	if !strings.HasPrefix(got.said, "status 1\n") || !strings.Contains(got.said, "br0") ||
		strings.Contains(got.said, "web-0") ||
		!strings.Contains(got.told, "prepare web/net1: ") {
		t.Errorf("%+v", got)
	}
}
