package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
)

// longName is as long as a bridge's can be.
const longName = "abcdefghijklmno"

// helpers are QEMU's own bridge helper and ours, installed alike, which read the same
// bridge.conf; and a netns with bridges.
type helpers struct {
	*installation
	ns           *netns.NS
	nl           *rtnl.Conn
	ours, theirs string
}

func newHelpers(t *testing.T) *helpers {
	t.Helper()
	h := &helpers{installation: install(t), ns: nstest.New(t)}
	h.ours, h.theirs = h.path("ours/qemu-bridge-helper"), h.path("theirs/qemu-bridge-helper")
	found := ""
	for _, path := range []string{"/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper"} {
		if _, err := os.Stat(path); err == nil {
			found = path
		}
	}
	nstest.Require(t, "qemu-bridge-helper", found != "", "apt install qemu-system-common")
	h.must(errors.Join(os.Mkdir(h.path("ours"), 0o755), os.Link(h.program, h.ours), os.Mkdir(h.path("theirs"), 0o755)))
	program, err := os.ReadFile(found)
	h.must(err)
	h.must(errors.Join(os.WriteFile(h.theirs, program, 0o755), os.Chmod(h.theirs, 0o755|os.ModeSetuid)))
	h.nl, err = rtnl.Open(h.ns)
	h.must(err)
	t.Cleanup(h.nl.Close)
	makeBridges(t, h.ns, "br0", "br1", longName)
	br, err := bridges.Get(h.nl, "br0")
	h.must(err)
	h.must(errors.Join(h.nl.Set(br.Index, rtnl.MTU(1400)), h.nl.AddAltName(br.Index, "altbr")))
	h.mountEtc()
	return h
}

func (h *helpers) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// mountEtc gives the mount namespace of the tests (see TestMain) an /etc with a directory qemu of
// the test, and with what a C program looks for besides.
func (h *helpers) mountEtc() {
	etc := h.path("etc")
	h.must(errors.Join(os.Mkdir(etc, 0o755), os.Symlink(h.dir, filepath.Join(etc, "qemu"))))
	for _, name := range []string{"ld.so.cache", "passwd", "group", "nsswitch.conf"} {
		if text, err := os.ReadFile(filepath.Join("/etc", name)); err == nil {
			h.must(os.WriteFile(filepath.Join(etc, name), text, 0o644))
		}
	}
	if os.Getenv(insideEnv) == "" {
		h.Fatal("these are the machine's own mounts")
	}
	h.must(unix.Mount(etc, "/etc", "", unix.MS_BIND, ""))
	h.Cleanup(func() { h.must(unix.Unmount("/etc", unix.MNT_DETACH)) })
}

// answer is what QEMU sees of a helper, and of the tap that it got.
type answer struct {
	ok     bool // exit status 0
	sent   bool // one byte with one fd
	flags  uint16
	bridge string // that the tap is a port of
	up     bool
	mtu    int
	mac0   byte
}

// user is who starts a helper.
type user struct {
	uid    int
	groups []uint32
}

// ask does what QEMU does, with the socket as fd 3. said is on stderr.
func (h *helpers) ask(program string, u user, args ...string) (a answer, said string) {
	h.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	h.must(err)
	sock, err := fdpass.Inherited(fds[0])
	h.must(err)
	defer sock.Close()
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	cmd := h.as(u.uid, args...)
	cmd.Path, cmd.Args[0] = program, program
	cmd.SysProcAttr.Credential.Groups = u.groups
	cmd.ExtraFiles = []*os.File{theirs}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = h.ns.Do(cmd.Run)
	theirs.Close()
	var exit interface{ ExitCode() int }
	if err != nil && (!errors.As(err, &exit) || program == h.ours && exit.ExitCode() != 1) {
		// QEMU's may die by a signal
		h.Errorf("%s %q: %v: %s", program, args, err, &stderr)
	}
	a.ok = err == nil
	payload, files, err := sock.Receive(8)
	defer fdpass.CloseAll(files)
	if err != nil {
		return a, stderr.String()
	}
	a.sent = string(payload) == "\x00" && len(files) == 1
	if a.sent {
		h.look(&a, files[0])
	}
	return a, stderr.String()
}

// look reads the tap, and sees it go with its only fd.
func (h *helpers) look(a *answer, queue *os.File) {
	h.Helper()
	ifr, err := unix.NewIfreq("")
	h.must(err)
	h.must(unix.IoctlIfreq(int(queue.Fd()), unix.TUNGETIFF, ifr))
	a.flags = ifr.Uint16()
	l, err := h.nl.Link(ifr.Name())
	h.must(err)
	a.up, a.mtu, a.mac0 = l.Up, l.MTU, l.MAC[0]
	if br, err := h.nl.LinkByIndex(l.Master); err == nil {
		a.bridge = br.Name
	}
	h.must(queue.Close())
	nstest.Eventually(h, 20*time.Second, ifr.Name()+" goes with its fd", func() bool {
		_, err := h.nl.Link(ifr.Name())
		return errors.Is(err, fs.ErrNotExist)
	})
}

// both asks both helpers. They answer alike, or where stricter says why, ours refuses.
func (h *helpers) both(what, stricter string, u user, args ...string) answer {
	h.Helper()
	theirs, theySay := h.ask(h.theirs, u, args...)
	ours, weSay := h.ask(h.ours, u, args...)
	var refused answer
	switch {
	case !ours.ok && (ours != refused || weSay == "" && len(args) > 0):
		h.Errorf("%s: it failed with %+v, and said %q", what, ours, weSay)
	case stricter == "" && ours != theirs:
		h.Errorf("%s, uid %d:\nours   %+v %stheirs %+v %s", what, u.uid, ours, weSay, theirs, theySay)
	case stricter != "" && (ours != refused || !theirs.ok):
		h.Errorf("%s, uid %d: no difference any more (%s):\nours   %+v %stheirs %+v %s", what, u.uid, stricter, ours,
			weSay, theirs, theySay)
	}
	return ours
}

func TestLiveSameCommandLines(t *testing.T) {
	h := newHelpers(t)
	h.config("bridge.conf", "allow all\ndeny br1\n")
	const vnet = "--use-vnet"
	for _, c := range []struct {
		args     string
		allowed  bool
		stricter string // why ours refuses what QEMU's takes
	}{
		{args: "--use-vnet --fd=3 --br=br0", allowed: true}, // QEMU's own order
		{args: "--fd=3 --br=br0", allowed: true},
		{args: "--br=br0 --fd=3 --use-vnet", allowed: true},
		{args: "--br=br0 --use-vnet --fd=3", allowed: true},
		{args: "--use-vnet --use-vnet --fd=3 --br=br0", allowed: true},
		{args: "--br=br1 --fd=3 --br=br0", allowed: true}, // the last one counts
		{args: "--br=br0 --fd=3 --br=br1"},
		{args: "--fd=77 --fd=3 --br=br0", allowed: true},
		{args: "--fd=3 --br=" + longName, allowed: true},
		{args: "--fd=3 --br=altbr", allowed: true},
		{args: "--fd=3 --br=" + longName + "p"},
		{args: "--fd=3 --br=" + strings.Repeat("x", 300)},
		{args: "--fd=3 --br=br1"},
		{args: "--fd=3 --br=missing"},
		{args: "--fd=3 --br=lo"},
		{args: "--fd=3 --br="},
		{args: "--fd=3 --br=br/0"},
		{args: ""},
		{args: "--fd=3"},
		{args: "--br=br0"},
		{args: "--use-vnet"},
		{args: "--fd=3 --br=br0 more"},
		{args: "more --fd=3 --br=br0"},
		{args: "--fd=3 --br=br0 --unknown"},
		{args: "--fd=3 --br=br0 --"},
		{args: "-- --fd=3 --br=br0"},
		{args: "--version"},
		{args: "--fd 3 --br br0"},
		{args: "-fd=3 -br=br0"},
		{args: "--fd=3 --bridge=br0"},
		{args: "--use-vnet=true --fd=3 --br=br0"},
		{args: "--use-vnet=false --fd=3 --br=br0"},
		{args: "--no-use-vnet --fd=3 --br=br0"},
		{args: "--fd= --br=br0"},
		{args: "--fd=0 --br=br0"},
		{args: "--fd=2 --br=br0"},
		{args: "--fd=4 --br=br0"},
		{args: "--fd=-1 --br=br0"},
		{args: "--fd=0x3 --br=br0"}, // 0 to QEMU's
		{args: "--fd=0b11 --br=br0"},
		{args: "--fd=3_0 --br=br0", stricter: "a number is digits alone: QEMU's takes it for 3"},
		{args: "--fd=99999999999999999999 --br=br0"},
		{
			args:     "--fd=4294967299 --br=br0",
			stricter: "such a large number is invalid: QEMU's helper keeps its lower 32 bits",
		},
		{args: "--fd=3x --br=br0", stricter: "a number is digits alone: QEMU's reads as far as it can"},
		{args: "--fd=+3 --br=br0", stricter: "a number is digits alone"},
		{args: "--fd=03 --br=br0", stricter: "a zero in front may mean octal"},
	} {
		for _, uid := range []int{nobody, 0} {
			got := h.both(c.args, c.stricter, user{uid: uid}, strings.Fields(c.args)...)
			if got.ok != c.allowed {
				t.Errorf("%s, uid %d: %+v", c.args, uid, got)
			}
			if got.ok && (got.flags&unix.IFF_VNET_HDR != 0) != strings.Contains(c.args, vnet) {
				t.Errorf("%s: flags %#x", c.args, got.flags)
			}
		}
	}
	for _, args := range []string{"--help", "--fd=3 --br=br0 --help", "--fd=3 --br=br0 -h"} { // QEMU never asks
		if got, _ := h.ask(h.ours, user{uid: nobody}, strings.Fields(args)...); got.sent {
			t.Errorf("%s: %+v", args, got)
		}
	}
	want := answer{
		ok: true, sent: true, flags: unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR, bridge: "br0",
		up: true, mtu: 1400, mac0: 0xfe,
	}
	if got, said := h.ask(h.ours, user{uid: nobody}, vnet, "--br=br0", "--fd=3"); got != want {
		t.Errorf("got %+v, want %+v: %s", got, want, said)
	}
}

// aclCase is a bridge.conf, in which DIR is its directory, and the files that it includes.
type aclCase struct {
	main     string
	files    map[string]string
	stricter string
}

func (h *helpers) acl(c aclCase) {
	h.Helper()
	h.config("bridge.conf", strings.ReplaceAll(c.main, "DIR", h.dir))
	for name, text := range c.files {
		h.config(name, strings.ReplaceAll(text, "DIR", h.dir))
	}
}

func TestLiveSameACL(t *testing.T) {
	h := newHelpers(t)
	for name, c := range map[string]aclCase{
		"allowed":          {main: "allow br0\n"},
		"another":          {main: "allow br1\n"},
		"empty":            {},
		"all":              {main: "allow all\n"},
		"deny beats allow": {main: "deny br0\nallow br0\n"},
		"deny beats all":   {main: "allow all\ndeny br0\n"},
		"deny all":         {main: "allow br0\ndeny all\n"},
		"comments":         {main: "# x\n\n  # allow br1\nallow br0"},
		"tabs":             {main: "\tallow\tbr0\t\n"},
		"bad word":         {main: "allow br0\npermit br1\n"},
		"no argument":      {main: "allow br0\nallow\n"},
		"name too long":    {main: "allow br0\nallow " + longName + "p\n"},
		"include":          {main: "include DIR/a.conf\n", files: map[string]string{"a.conf": "allow br0\n"}},
		"include denies": {
			main:  "allow br0\ninclude DIR/a.conf\n",
			files: map[string]string{"a.conf": "deny br0\n"},
		},
		"broken include": {
			main:  "include DIR/a.conf\nallow br0\n",
			files: map[string]string{"a.conf": "deny br1\nx y z\ndeny br0\n"},
		},
		"missing include":    {main: "include DIR/none.conf\nallow br0\n"},
		"directory included": {main: "include DIR\nallow br0\n"},
		"two deep": {
			main:  "include DIR/a.conf\n",
			files: map[string]string{"a.conf": "include DIR/b.conf\n", "b.conf": "allow br0\n"},
		},
		"twice": {
			main:  "include DIR/a.conf\ninclude DIR/a.conf\n",
			files: map[string]string{"a.conf": "allow br0\n"},
		},
		"altname": {main: "allow altbr\n"},
		"relative": {
			main: "allow br0\ninclude a.conf\n", files: map[string]string{"a.conf": "#\n"},
			stricter: "a relative path would be one from a directory that the caller chooses",
		},
		"long line": {
			main:     "allow br0" + strings.Repeat(" ", 5000) + "\n",
			stricter: "QEMU's splits a line of 4096 bytes and more, and reads its rest as a line of its own",
		},
		"device included": {
			main:     "allow br0\ninclude /dev/null\n",
			stricter: "a fifo or device is no file of rules",
		},
		"includes of 9 deep": nineDeep(),
	} {
		t.Run(name, func(t *testing.T) {
			h.acl(c)
			for _, uid := range []int{nobody, 0} {
				if strings.Contains(c.main, "altbr") {
					continue // below
				}
				h.both(name, c.stricter, user{uid: uid}, "--use-vnet", "--fd=3", "--br=br0")
			}
		})
	}
	h.config("bridge.conf", "allow altbr\n")
	h.both("altname", "a rule is about the bridge, by whatever name it is asked for", user{uid: nobody}, "--fd=3",
		"--br=altbr")
	h.config("bridge.conf", "allow altbr\nallow br0\n")
	h.both("altname and name", "", user{uid: nobody}, "--fd=3", "--br=altbr")
	h.config("bridge.conf", "allow all\ndeny br0\n")
	h.both("denied by name", "a rule is about the bridge, by whatever name it is asked for",
		user{uid: nobody}, "--fd=3", "--br=altbr")
	h.must(os.Remove(h.path("bridge.conf")))
	for _, uid := range []int{nobody, 0} {
		h.both("no ACL file", "", user{uid: uid}, "--fd=3", "--br=br0")
	}
}

func nineDeep() aclCase {
	c := aclCase{
		main: "allow br0\ninclude DIR/d1.conf\n", files: map[string]string{},
		stricter: "files may include each other 8 deep: without a bound QEMU's runs out of fds",
	}
	for i := 1; i < 9; i++ {
		c.files[fmt.Sprintf("d%d.conf", i)] = fmt.Sprintf("include DIR/d%d.conf\n", i+1)
	}
	c.files["d9.conf"] = "#\n"
	return c
}

// A file's mode decides whom the file is for: it is read with the caller's permissions.
func TestLiveSameFileModes(t *testing.T) {
	const group = 4242
	h := newHelpers(t)
	include := h.path("group.conf")
	for _, c := range []struct {
		name     string
		included string // by what allows all of it
		u        user
		allowed  bool
	}{
		{"a member", "allow br0\n", user{nobody, []uint32{group}}, true},
		{"one of many groups", "allow br0\n", user{nobody, []uint32{5, group, 7}}, true},
		{"no member", "allow br0\n", user{nobody, []uint32{5}}, false},
		{"root", "allow br0\n", user{0, nil}, true},
	} {
		h.config("bridge.conf", "include "+include+"\n")
		h.config("group.conf", c.included)
		h.must(errors.Join(os.Chown(include, 0, group), os.Chmod(include, 0o640)))
		if got := h.both(c.name, "", c.u, "--fd=3", "--br=br0"); got.ok != c.allowed {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	h.config("bridge.conf", "allow br0\n")
	h.must(os.Chmod(h.path("bridge.conf"), 0o600))
	if got := h.both("unreadable ACL", "", user{uid: nobody}, "--fd=3", "--br=br0"); got.ok {
		t.Errorf("an unreadable file allows: %+v", got)
	}
	h.both("ACL for root", "", user{uid: 0}, "--fd=3", "--br=br0")
}

// Files made at random: the answers are the same, or ours says that it refuses the file.
func TestLiveSameRandomACL(t *testing.T) {
	h := newHelpers(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	allowed := 0
	const files = 300
	for n := range files {
		c := aclCase{
			main:  randomACL(r, "a", "b"),
			files: map[string]string{"a.conf": randomACL(r, "b"), "b.conf": randomACL(r)},
		}
		h.acl(c)
		u := user{uid: nobody}
		if n%10 == 0 {
			u.uid = 0
		}
		br := []string{"br0", "br1", longName}[r.IntN(3)]
		theirs, theySay := h.ask(h.theirs, u, "--fd=3", "--br="+br)
		ours, weSay := h.ask(h.ours, u, "--fd=3", "--br="+br)
		if ours.ok {
			allowed++
		}
		if ours != theirs && (ours.ok || !strings.Contains(weSay, "refused:")) {
			t.Fatalf("%s for uid %d:\nours   %+v %stheirs %+v %s%q\n%q", br, u.uid, ours, weSay, theirs,
				theySay, c.main, c.files)
		}
	}
	if allowed < files/10 || allowed > files*9/10 {
		t.Errorf("%d of %d were allowed: the generator is no good", allowed, files)
	}
}

// randomACL is mostly what people write. It includes these files, so none includes itself: on that
// QEMU's goes on until it is out of fds, or of stack.
func randomACL(r *rand.Rand, files ...string) string {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	var b strings.Builder
	for range 1 + r.IntN(5) {
		b.WriteString(pick("", "", "", " ", "\t", " \t"))
		switch n := r.IntN(40); {
		case n < 22:
			b.WriteString("allow" + pick(" ", " ", " ", "\t", "  ", " \t") + pick("br0", "br0", "br1",
				longName, "all", "all", "other"))
		case n < 27:
			b.WriteString("deny" + pick(" ", "\t") + pick("br0", "br1", longName, "other", "other", "all"))
		case n < 33:
			b.WriteString("include" + pick(" ", "\t") + "DIR/" + pick(append(files, "none")...) + ".conf")
		case n < 38:
			b.WriteString(pick("", "#", "# allow br0", "#deny all"))
		default:
			b.WriteString(pick("allow", "permit br0", "allow "+longName+"p", "allow br0 br1", "deny", "include",
				"allow br0 # mine", "Allow br0"))
		}
		b.WriteString(pick("", "", "", " ", "\t", "\r") + "\n")
	}
	return b.String()
}
