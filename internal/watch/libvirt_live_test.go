package watch

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/libvirt"
	"vmnet/libvirt/libvirttest"
)

// machine is a host with a libvirtd, watched through the read-only socket.
type machine struct {
	*host
	daemon *libvirttest.Daemon
	conn   atomic.Pointer[libvirt.Conn] // the watcher's latest connection
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	libvirttest.Require(t)
	h := newHost(t)
	return &machine{host: h, daemon: libvirttest.Start(t, h.ns)}
}

func (m *machine) dial(ctx context.Context) (*libvirt.Conn, error) {
	c, err := libvirt.Dialer{Path: m.daemon.Socket() + "-ro", ReadOnly: true}.Dial(ctx)
	if err == nil {
		m.conn.Store(c)
	}
	return c, err
}

// quiet is [host.quiet] for libvirt's events too. libvirt sends them before its reply to a later
// request on the watcher's connection.
func (m *machine) quiet(n int) {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := m.conn.Load().ListDomains(ctx, libvirt.ListActive); err != nil {
		m.Fatal(err)
	}
	nstest.Eventually(m, patience, "libvirt's events are worked off", func() bool {
		return nstest.Waiting("internal/watch.(*watcher).serve") == 1
	})
	m.host.quiet(n)
}

// start starts a domain that never runs an instruction, with slots for NICs that are attached live.
func (m *machine) start(name, metadata, interfaces string) {
	m.Helper()
	m.daemon.Define(fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
		<metadata>%s</metadata>
		<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
		<devices><controller type='usb' model='none'/><memballoon model='none'/>%s</devices></domain>`, name, metadata, interfaces))
	m.daemon.Virsh("start", "--paused", name)
}

// declareNIC declares port settings for a MAC.
func declareNIC(last byte, settings string) string {
	return fmt.Sprintf("<vmnet:nic mac='%s' %s/>", guestMAC(last), settings)
}

func nicsElement(nics ...string) string {
	return "<vmnet:nics xmlns:vmnet='urn:vmnet:nics:1'>" + strings.Join(nics, "") + "</vmnet:nics>"
}

// attach attaches a NIC on br0 to a domain with virsh, and returns its tap.
func (m *machine) attach(domain string, mac fmt.Stringer, more ...string) (tap string) {
	m.Helper()
	m.daemon.Virsh(append([]string{
		"attach-interface", domain, "bridge", "br0", "--model", "virtio", "--mac",
		mac.String(), "--live",
	}, more...)...)
	return m.tapOf(domain, mac)
}

func (m *machine) tapOf(domain string, mac fmt.Stringer) string {
	m.Helper()
	for line := range strings.Lines(m.daemon.Virsh("domiflist", domain)) {
		if f := strings.Fields(line); len(f) == 5 && f[4] == mac.String() {
			return f[0]
		}
	}
	m.Fatalf("domain %s has no NIC with MAC %s", domain, mac)
	return ""
}

// arrivals records, by name, when taps appear, before they are ports.
func (m *machine) arrivals() func(name string) time.Time {
	m.Helper()
	events, err := rtnl.OpenEvents(m.ns)
	if err != nil {
		m.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[string]time.Time{}
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			e, err := events.Next()
			if err != nil {
				return
			}
			mu.Lock()
			if _, known := seen[e.Name]; !known && e.Tun != nil {
				seen[e.Name] = time.Now()
			}
			mu.Unlock()
		}
	})
	m.Cleanup(func() {
		_ = events.Close()
		reader.Wait()
	})
	return func(name string) time.Time {
		mu.Lock()
		defer mu.Unlock()
		return seen[name]
	}
}

func TestLiveSettingsOfANICThatIsAttachedLive(t *testing.T) {
	m := newMachine(t)
	m.start("web", nicsElement(declareNIC(1, "isolated='yes'"), declareNIC(2, "hairpin='yes' no-flood='yes'")), "")
	m.start("plain", "", "")
	m.watch(m.dial)
	arrived := m.arrivals()
	tap := m.attach("web", guestMAC(1))
	m.becomes(tap, "br0", "isolated")
	_, at := m.reported("port set to isolated", tap)
	late := at.Sub(arrived(tap))
	t.Logf("%s had its settings %v after it was made", tap, late)
	m.becomes(m.attach("web", guestMAC(2)), "br0", "hairpin;noflood")
	m.becomes(m.attach("web", guestMAC(3)), "br0", "")
	m.becomes(m.attach("plain", guestMAC(4)), "br0", "")
	m.quiet(2)

	// A later change of the port by another program stays.
	m.ip("link", "set", tap, "type", "bridge_slave", "isolated", "off")
	m.ip("link", "set", tap, "mtu", "1400")
	m.quiet(2)
	m.becomes(tap, "br0", "")

	// A new declaration takes effect at once, also for existing NICs. A NIC that is attached again
	// is a new one.
	m.daemon.Virsh("metadata", "plain", "--live", "--uri", "urn:vmnet:nics:1", "--key", "vmnet", "--set",
		"<nics><nic mac='52:54:00:00:00:04' no-learning='yes'/></nics>")
	m.becomes(m.tapOf("plain", guestMAC(4)), "br0", "nolearn")
	m.daemon.Virsh("destroy", "web")
	m.daemon.Virsh("start", "--paused", "web")
	m.becomes(m.attach("web", guestMAC(1)), "br0", "isolated")
	m.quiet(4)
}

// The hook handles NICs at a domain's start, if it is installed; otherwise watch does.
func TestLiveSettingsOfADomainThatStarts(t *testing.T) {
	m := newMachine(t)
	m.watch(m.dial)
	m.start("web", nicsElement(declareNIC(1, "isolated='yes'"), "<vmnet:nic id='web1' no-flood='yes'/>"),
		fmt.Sprintf(`<interface type='bridge'><source bridge='br0'/><mac address='%s'/></interface>
		<interface type='bridge'><source bridge='br0'/><mac address='%s'/><alias name='ua-vmnet-web1'/></interface>`, guestMAC(1), guestMAC(2)))
	m.becomes(m.tapOf("web", guestMAC(1)), "br0", "isolated")
	m.becomes(m.tapOf("web", guestMAC(2)), "br0", "noflood")
}

func TestLiveWatchBeginsWithWhatIsThere(t *testing.T) {
	m := newMachine(t)
	m.start("web", nicsElement(declareNIC(1, "isolated='yes'")), "")
	tap := m.attach("web", guestMAC(1))
	m.becomes(tap, "br0", "")
	m.watch(m.dial)
	m.becomes(tap, "br0", "isolated")
}

func TestLiveWrongMetadataIsReported(t *testing.T) {
	m := newMachine(t)
	m.start("web", nicsElement(declareNIC(1, "isolatd='yes'")), "")
	m.watch(m.dial)
	r, _ := m.reported("its declaration is invalid", "")
	if r.Guest != "web" || r.Err == nil || !strings.Contains(r.Err.Error(), `attribute "isolatd" is not known`) {
		t.Errorf("%+v", r)
	}
	m.becomes(m.attach("web", guestMAC(1)), "br0", "")
}

// TestLiveManyNICsOfTwoDomains attaches to two domains at once.
func TestLiveManyNICsOfTwoDomains(t *testing.T) {
	m := newMachine(t)
	const each = 14
	var all [2][]string
	for i := range byte(2 * each) {
		all[i/each] = append(all[i/each], declareNIC(i, "isolated='yes'"))
	}
	m.start("a", nicsElement(all[0]...), "")
	m.start("b", nicsElement(all[1]...), "")
	m.watch(m.dial)
	arrived := m.arrivals()
	var both sync.WaitGroup
	for d, domain := range []string{"a", "b"} {
		both.Go(func() {
			for i := range byte(each) {
				if out, err := m.daemon.Try("attach-interface", domain, "bridge", "br0", "--model", "virtio", "--mac",
					guestMAC(byte(d*each)+i).String(), "--live"); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			}
		})
	}
	both.Wait()
	var late []time.Duration
	for i := range byte(2 * each) {
		domain := []string{"a", "b"}[i/each]
		tap := m.tapOf(domain, guestMAC(i))
		m.becomes(tap, "br0", "isolated")
		_, at := m.reported("port set to isolated", tap)
		late = append(late, at.Sub(arrived(tap)))
	}
	slices.Sort(late)
	t.Logf("settings of %d NICs: median %v, longest %v after it was made",
		len(late), late[len(late)/2], late[len(late)-1])
	m.quiet(2 * each)
}

// TestLiveLibvirtdRestarts: declarations stay known while libvirtd is down, and are read again
// afterwards.
func TestLiveLibvirtdRestarts(t *testing.T) {
	m := newMachine(t)
	m.start("web", nicsElement(declareNIC(1, "isolated='yes'"), declareNIC(2, "isolated='yes'")), "")
	m.watch(m.dial)
	m.becomes(m.attach("web", guestMAC(1)), "br0", "isolated")
	for range 2 {
		m.forgetReports()
		if err := syscall.Kill(m.daemon.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		m.reported("libvirt cannot be reached", "")
		m.daemon.Await()
		m.reported("connected to libvirt", "")
	}
	m.becomes(m.attach("web", guestMAC(2)), "br0", "isolated")
}

func TestLiveWithoutLibvirtOursAreWatched(t *testing.T) {
	h := newHost(t)
	h.ours("lost", "br0", "")
	h.watch(func(ctx context.Context) (*libvirt.Conn, error) {
		return libvirt.Dialer{Path: h.TempDir() + "/none"}.Dial(ctx)
	})
	h.reported("libvirt cannot be reached", "")
	h.ip("link", "del", "br0")
	h.bridge("br0")
	h.becomes("lost", "br0", "")
	h.quiet(2)
}

func TestLiveLibvirtsTapsAreBackOnTheirBridge(t *testing.T) {
	m := newMachine(t)
	m.daemon.Virsh("net-define",
		m.file("net.xml", "<network><name>own</name><forward mode='bridge'/><bridge name='br0'/></network>"))
	m.daemon.Virsh("net-start", "own")
	m.start("web", nicsElement(declareNIC(1, "hairpin='yes'"), declareNIC(2, "isolated='yes'")), fmt.Sprintf(`
		<interface type='bridge'><source bridge='br0'/><mac address='%s'/><port isolated='yes'/></interface>
		<interface type='network'><source network='own'/><mac address='%s'/></interface>
		<interface type='bridge'><source bridge='br0'/><mac address='%s'/></interface>`, guestMAC(1), guestMAC(2), guestMAC(3)))
	m.watch(m.dial)
	want := map[string]string{
		m.tapOf("web", guestMAC(1)): "isolated;hairpin",
		m.tapOf("web", guestMAC(2)): "isolated",
		m.tapOf("web", guestMAC(3)): "",
	}
	all := func() {
		t.Helper()
		for tap, port := range want {
			m.becomes(tap, "br0", port)
		}
	}
	all()
	m.ip("link", "del", "br0")
	m.bridge("br0")
	all()
	for tap := range want {
		m.reported("put back on br0", tap)
	}
	// Removed from the bridge by another program, while the bridge stays.
	off := m.tapOf("web", guestMAC(3))
	m.ip("link", "set", off, "nomaster")
	m.ip("link", "add", "br9", "type", "bridge")
	m.settled()
	m.becomes(off, "", "")
	// On another bridge: it stays there.
	m.ip("link", "set", off, "master", "br9")
	m.ip("link", "del", "br0")
	m.bridge("br0")
	delete(want, off)
	all()
	m.becomes(off, "br9", "")
}

// A macvtap that was handed over by name outlives its guest.
func TestLiveAllPIDsWhatADomainLeavesIsRemoved(t *testing.T) {
	nstest.RequireFirstPIDNS(t)
	m := newMachine(t)
	m.start("web", "", "")
	m.watch(m.dial)
	m.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	m.ip("link", "add", "web-m", "link", "eth0", "type", "macvtap", "mode", "bridge")
	m.ip("link", "set", "dev", "web-m", "alias",
		"vmnet vm=web nic=m type=macvtap source=eth0 mode=bridge rx=allmulti mac=52:54:00:00:00:01 model=virtio-net-pci queues=1 via=libvirt")
	m.daemon.Virsh("destroy", "web")
	m.reported("removed", "web-m")
	if _, err := m.nl.Link("web-m"); !isGone(err) {
		t.Errorf("the macvtap is still there: %v", err)
	}
}

func (m *machine) file(name, text string) string {
	m.Helper()
	path := m.TempDir() + "/" + name
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		m.Fatal(err)
	}
	return path
}
