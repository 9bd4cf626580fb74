package usernet

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/internal/network/config"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// lab returns a network with those forwards.
func lab(t *testing.T, forwards ...string) *config.Network {
	t.Helper()
	n := &config.Network{
		Name: "lab", NAT: true, DHCP: true, Domain: "lab.internal",
		Subnet: netip.MustParsePrefix("10.66.0.0/24"), IPv6: netip.MustParsePrefix("fd66:1:2:3::/64"),
	}
	for _, text := range forwards {
		words := strings.Fields(text + " ")
		words = append(words, "")
		f, err := config.ParseForward(words[0], words[1], words[2])
		if err != nil {
			t.Fatal(err)
		}
		n.Forwards = append(n.Forwards, f)
	}
	if err := n.Validate(); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCheck(t *testing.T) {
	if err := Check(lab(t, "tcp:8080 10.66.0.11:80", "tcp:8080 [fd66:1:2:3::11]:80")); err != nil {
		t.Error(err)
	}
	lo, overlaps, uplink := lab(t), lab(t), lab(t)
	lo.Name, overlaps.Subnet, uplink.Uplink = "lo", netip.MustParsePrefix("192.0.0.0/24"), &config.Uplink{}
	for want, n := range map[string]*config.Network{
		"choose another)":             lo,
		"choose another subnet":       overlaps,
		"an uplink needs root":        uplink,
		"network has at most 200":     lab(t, "tcp:5000-5200 10.66.0.11"),
		"forwards from 202 ports: a ": lab(t, "udp:5000-5100 10.66.0.11", "tcp:5000-5100 10.66.0.11"),
	} {
		if err := Check(n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestForwardsOf(t *testing.T) {
	got, err := forwardsOf(lab(t,
		"tcp:8080 10.66.0.11:80", "udp:5000-5001 [fd66:1:2:3::11]", "tcp:22 10.66.0.11 192.0.2.1"))
	want := []forward{
		{"tcp 0.0.0.0:8080", "10.66.0.11:80"},
		{"udp [::]:5000", "[fd66:1:2:3::11]:5000"},
		{"udp [::]:5001", "[fd66:1:2:3::11]:5001"},
		{"tcp 192.0.2.1:22", "10.66.0.11:22"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestPastaArgs(t *testing.T) {
	const common = "--foreground --stderr --config-net --no-map-gw --ns-ifname WAN "
	const none = " --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none"
	const ip4 = "--address 192.0.0.2 --netmask 29 --gateway 192.0.0.1 "
	const ip6 = "--address fd76:6d6e:6574:1::1 --gateway fe80::1"
	for want, w := range map[string]way{
		ip4 + "--ipv4-only":  {ip4: true},
		"--ipv6-only " + ip6: {ip6: true},
		ip4 + ip6:            {true, true},
	} {
		if got := strings.Join(pastaArgs(w), " "); got != common+want+none {
			t.Errorf("%v: %s", w, got)
		}
	}
}

func TestExplainUserNS(t *testing.T) {
	was := userNSSettings
	defer func() { userNSSettings = was }()
	path := filepath.Join(t.TempDir(), "setting")
	userNSSettings = slices.Clone(was[:1])
	userNSSettings[0].path = path
	err := explainUserNS(syscall.EPERM)
	if !strings.Contains(err.Error(), "a chroot") || !errors.Is(err, syscall.EPERM) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err = explainUserNS(syscall.ENOSPC)
	if !strings.Contains(err.Error(), "(as root: sysctl user.max_user_namespaces=") {
		t.Error(err)
	}
}

func TestLog(t *testing.T) {
	dir := t.TempDir()
	l := OpenLog(dir, "lab")
	for range 3 * maxLog / 1000 {
		l.Add(strings.Repeat("x", 1000))
	}
	for _, path := range []string{logFile(dir, "lab"), oldLog(logFile(dir, "lab"))} {
		info, err := os.Stat(path)
		if err != nil || info.Size() > maxLog+2000 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
}

// echo serves TCP and UDP at addresses that it returns: it says its name first, and then repeats.
func echo(t *testing.T, name string) (tcp, udp string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, name)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(append([]byte(name), b[:n]...), from)
		}
	}()
	return l.Addr().String(), u.LocalAddr().String()
}

// pipes returns how many ends of pipes this process has open.
func pipes(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// TestRelays: connections go to the guest, whichever end speaks first, and half-closed ones stay. A
// forward that stays keeps its socket, and leads to another guest at once; one that goes is closed.
func TestRelays(t *testing.T) {
	before := pipes(t)
	// Package os keeps pipes for splice(2) until they are garbage.
	defer nstest.Eventually(t, 10*time.Second, "pipes are closed", func() bool {
		runtime.GC()
		return pipes(t) <= before
	})
	redTCP, redUDP := echo(t, "red")
	blueTCP, _ := echo(t, "blue")
	var files []*os.File
	addrs := make([]string, 2)
	for i, key := range []string{"tcp 127.0.0.1:0", "udp 127.0.0.1:0"} {
		f, err := listenOn(key)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		sa, err := syscall.Getsockname(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		addrs[i] = net.JoinHostPort("127.0.0.1", strconv.Itoa(sa.(*syscall.SockaddrInet4).Port))
	}
	r := relays{}
	forwards := []forward{{"tcp x", redTCP}, {"udp x", redUDP}}
	if err := r.set(forwards, files); err != nil {
		t.Fatal(err)
	}
	talk := func(network, addr, say string) string {
		c, err := net.Dial(network, addr)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, say)
		b := make([]byte, 100)
		if half, ok := c.(*net.TCPConn); ok {
			_ = half.CloseWrite()
			all, err := io.ReadAll(c)
			if err != nil {
				return err.Error()
			}
			return string(all)
		}
		n, err := c.Read(b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	if said := talk("tcp", addrs[0], "?"); said != "red?" {
		t.Error(said)
	}
	if said := talk("udp", addrs[1], "?"); said != "red?" {
		t.Error(said)
	}
	if err := r.set([]forward{{"tcp x", blueTCP}}, nil); err != nil {
		t.Fatal(err)
	}
	if said := talk("tcp", addrs[0], ""); said != "blue" {
		t.Error(said)
	}
	if said := talk("udp", addrs[1], "?"); !strings.Contains(said, "refused") {
		t.Error(said)
	}
	if err := r.set([]forward{{"tcp x", "127.0.0.1:1"}}, nil); err != nil {
		t.Fatal(err)
	}
	if said := talk("tcp", addrs[0], ""); !strings.Contains(said, "reset") {
		t.Errorf("a guest that does not listen: %s", said)
	}
	if err := r.set(nil, nil); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 10*time.Second, "connections end", func() bool { return r.busy.Load() == 0 })
	if err := r.set([]forward{{"tcp y", redTCP}}, nil); err == nil {
		t.Error("a forward without a socket was made")
	}
}

func TestListenOnTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if f, err := listenOn("tcp " + l.Addr().String()); err == nil || !strings.Contains(err.Error(), "ss -lntup") {
		t.Error(f, err)
	}
}
