package tapmgr_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// labelOf is a label of a NIC by a socket in the host's netns.
func (h *host) labelOf(vm, nic string) *os.File {
	h.Helper()
	inode, err := h.ns.Inode()
	if err != nil {
		h.Fatal(err)
	}
	return h.file(
		procfd.NewLabel(
			fmt.Sprintf(
				"vmnet vm=%s nic=%s type=socket source=/run/none/socket switch=on netns=%d mac=52:54:00:00:00:09 model=e1000 queues=1",
				vm, nic, inode)))
}

// fill has the helper duplicate its fd 3 until it has n files, and say so.
func fill(n int) int {
	var err error
	for fd := 10; err == nil && fd < n; fd++ {
		err = unix.Dup3(3, fd, 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("filled")
	time.Sleep(time.Minute) // not a wait: it is there for so long
	return 0
}

// prepared makes a NIC as the hook does, for a libvirt guest that is about to start.
func (h *host) prepared(vm, nicID string) error {
	h.Helper()
	_, err := h.Host().Prepare(h.context(10*time.Second), nic.Spec{
		Target: nic.Target{VM: vm}, NIC: nicID, Bridge: "br0", Queues: 1, Vhost: nic.VhostOff,
	})
	return err
}

// TestLiveOthersLabelsDecideNothing: a user's process says that libvirt's guest has a NIC. That
// keeps neither the guest from starting nor its NIC from being attached, and is listed as that
// user's word.
func TestLiveOthersLabelsDecideNothing(t *testing.T) {
	h := newHost(t)
	label := h.labelOf("web", "net0")
	h.hostile(order{Hold: true}, "qemu-system-x86_64 -name guest=web", label)
	if err := label.Close(); err != nil { // else it is root's word
		t.Fatal(err)
	}
	nstest.Eventually(t, 10*time.Second, "the label is listed", func() bool {
		nics, err := h.List("web")
		return err == nil && len(nics) == 1 && nics[0].UID == user && nics[0].State == nic.Unknown
	})
	if err := h.prepared("web", "net0"); err != nil {
		t.Errorf("prepare: %v", err)
	}
	ctx := h.context(20 * time.Second)
	checked, err := h.Check(ctx)
	if err != nil || len(checked.Differences) != 0 ||
		!strings.Contains(strings.Join(checked.Notices, "\n"), fmt.Sprintf("of user %d says that it is there", user)) {
		t.Errorf("check %+v, %v", checked, err)
	}
	actions, err := h.Reconcile(ctx, false)
	if err != nil {
		t.Error(err)
	}
	for _, a := range actions {
		if a.Error != "" || a.Changed {
			t.Errorf("reconcile %+v", a)
		}
	}
	if left, err := h.Host().Release(ctx, "web"); err != nil || len(left) != 1 || left[0].Error != "" {
		t.Errorf("release %+v, %v", left, err)
	}
}

// TestRootsLabelsDecide: root's own process may say so.
func TestRootsLabelsDecide(t *testing.T) {
	h := newUserHost(t)
	label := h.labelOf("web", "net0") // held by this process
	if nics, err := h.List("web"); err != nil || len(nics) != 1 || nics[0].UID != 0 {
		t.Errorf("list %+v, %v", nics, err)
	}
	if err := h.prepared("web", "net0"); !errors.Is(err, nic.ErrExist) {
		t.Errorf("prepare: %v", err)
	}
	runtime.KeepAlive(label)
}

// cpuTime is what this process has used of processors.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestLiveCostIsBounded: a user has 100,000 files open, of all kinds that NICs may hang on.
func TestLiveCostIsBounded(t *testing.T) {
	const all = 100_000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	files := int(min(limit.Cur, 20_000)) // of a process
	processes := (all + files - 1) / files
	h := newHost(t)
	var notices []string
	h.onUnseen(func(text string) { notices = append(notices, text) })
	tun := h.file(os.OpenFile("/dev/net/tun", os.O_RDWR, 0))
	node, _ := h.fifo("tap9")
	null := h.file(os.Open(os.DevNull))
	h.persistentTaps("web-net1") // so that queues matter
	h.markOurs("web-net1")
	started := time.Now()
	kinds := []*os.File{h.labelOf("web", "net0"), h.labelOf("db", "net0"), tun, node, null}
	for i := range processes {
		f := kinds[i%len(kinds)]
		argv := fmt.Sprintf("qemu-system-x86_64 -name guest=g%d", i)
		switch f {
		case tun, node: // as libvirt's
			argv += " -chardev socket,id=charmonitor,fd=3,server=on,wait=off" +
				" -mon chardev=charmonitor,id=monitor,mode=control"
		case null: // as one of another name
			argv = "vmm -name guest=web -machine pc -nodefaults"
		}
		h.filled(files, argv, f)
	}
	t.Logf("made %d files in %v", processes*files, time.Since(started))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	started = time.Now()
	worked := cpuTime(t)
	nics, err := h.ListAll(h.context(30*time.Second), "")
	took := time.Since(started)
	worked = cpuTime(t) - worked
	runtime.ReadMemStats(&after)
	more := int64(after.HeapSys) - int64(before.HeapSys)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("listed %d NICs in %v, %v of a processor, %d KiB of heap more, %d KiB allocated in all",
		len(nics), took, worked,
		more/1024, (after.TotalAlloc-before.TotalAlloc)/1024)
	if worked > 20*time.Second || more > 32<<20 { // with the race detector, beside others
		t.Errorf("list took %v and %d bytes", worked, more)
	}
	if !strings.Contains(strings.Join(notices, "\n"),
		fmt.Sprintf("of the files of user %d's processes not all were looked at", user)) {
		t.Errorf("notices %q", notices)
	}
	if len(nics) > 10 {
		t.Errorf("%d NICs listed", len(nics))
	}
}

// flood listens like 64 switches, each of which says without end that this process has NICs of
// guests there.
func flood(dir string, inode uint64) int {
	var ports []string
	for i := range 100 {
		label := fmt.Sprintf(
			"vmnet vm=web nic=n%d type=socket source=/run/none/socket switch=on netns=%d mac=52:54:00:00:00:09 model=e1000 queues=1",
			i, inode)
		ports = append(ports, fmt.Sprintf(`{"name":"p%d","kind":"socket","label":%q,"holder":%d,"config":{}}`,
			i, label, os.Getpid()))
	}
	answer := []byte(`{"more":true,"ports":[` + strings.Join(ports, ",") + `]}`)
	for i := range 64 {
		own := filepath.Join(dir, fmt.Sprint("s", i))
		err := os.Mkdir(own, 0o700)
		l, listenErr := net.ListenUnix("unixpacket",
			&net.UnixAddr{Name: filepath.Join(own, "socket"), Net: "unixpacket"})
		if err = errors.Join(err, listenErr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					for err == nil {
						_, err = conn.Write(answer)
					}
					_ = conn.Close()
				}()
			}
		}()
	}
	fmt.Println("filled")
	time.Sleep(time.Minute) // not a wait: the pace of what it does
	return 0
}

// TestLiveOthersSwitchesAreBounded: a user runs 64 fake switches that answer ports without end.
// They cost little time and memory, and delay the caller's own switch no more than others' do.
func TestLiveOthersSwitchesAreBounded(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	dir := h.tempDir()
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	inode, err := h.ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h.hostileTo(w, order{Flood: dir, Netns: inode}, "switches")
	_ = w.Close()
	if n, err := r.Read(make([]byte, 7)); n == 0 {
		t.Fatal(err)
	}
	h.AskSwitches, h.Switches = true, nil
	for i := range 64 {
		h.Switches = append(h.Switches, filepath.Join(dir, fmt.Sprint("s", i), "socket"))
	}
	h.Switches = append(h.Switches, s.path)
	notices := map[string]bool{}
	h.onUnseen(func(text string) { notices[text] = true })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	nics, err := h.List("")
	runtime.ReadMemStats(&after)
	more := int64(after.HeapSys) - int64(before.HeapSys)
	t.Logf("%d NICs, %d KiB of heap more, %d notices", len(nics), more/1024, len(notices))
	if err != nil || len(nics) > 256 || more > 32<<20 || len(notices) == 0 {
		t.Errorf("%d NICs, %v, %d bytes, notices %v", len(nics), err, more, notices)
	}
	for _, n := range nics {
		if n.UID != user {
			t.Fatalf("%+v: want it listed as user %d's word", n, user)
		}
	}
	for text := range notices {
		if strings.Contains(text, s.path) {
			t.Errorf("root's own switch: %s", text)
		}
	}
}

// TestLiveOthersLocksDecideNothing: an attach to a libvirt guest was cut short, and a user's
// process says that it is that guest, and is locked. That keeps the guest from starting no more
// than a label does.
func TestLiveOthersLocksDecideNothing(t *testing.T) {
	h := newHost(t)
	h.persistentTaps("web-net0")
	l := h.link("web-net0")
	if err := h.nl.Set(l.Index,
		rtnl.Alias(
			"vmnet vm=web nic=net0 type=tap source=br0 mac=52:54:00:00:00:01"+
				" model=virtio-net-pci queues=1 via=libvirt state=attaching")); err != nil {
		t.Fatal(err)
	}
	dir := h.tempDir()
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	lock := h.file(os.Open(dir))
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	cmd := h.hostile(order{Hold: true},
		"qemu-system-x86_64 -name guest=web -chardev socket,id=charmonitor,fd=3,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control "+
			`-object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"`+dir+`/master-key.aes"}`, lock)
	nstest.Eventually(t, 10*time.Second, "it looks like a libvirt guest", func() bool {
		p, err := qemu.ByPID(cmd.Process.Pid)
		return err == nil && p.Libvirt && p.Dir == dir
	})
	if err := h.prepared("web", "net0"); err != nil {
		t.Errorf("prepare: %v", err)
	}
}
