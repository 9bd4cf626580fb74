package dnsrelay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience is how long things may take that need no time on an idle machine.
const patience = 30 * time.Second

// setup is a relay between a client and a name server, all on this machine's loopback interface.
type setup struct {
	*relay
	question net.Conn     // to the relay, by UDP
	address  string       // of the relay, for TCP
	server   net.Listener // the name server by TCP
	packets  net.PacketConn
}

// newSetup starts a relay with that many slots and that timeout.
func newSetup(t *testing.T, slots int, timeout time.Duration) *setup {
	t.Helper()
	listen := func() (net.PacketConn, net.Listener) {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return c, l
	}
	s := &setup{relay: newRelay()}
	s.slots, s.timeout = make(chan struct{}, slots), timeout
	c, l := listen()
	s.packets, s.server = listen()
	s.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != c.LocalAddr().String() && address != l.Addr().String() {
			t.Errorf("the relay asks %s", address)
		}
		to := s.packets.LocalAddr()
		if network == "tcp" {
			to = s.server.Addr()
		}
		return (&net.Dialer{}).DialContext(ctx, network, to.String())
	}
	s.address = l.Addr().String()
	var err error
	if s.question, err = net.Dial("udp", c.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.run(ctx, []net.PacketConn{c}, []net.Listener{l})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if err := errors.Join(s.question.Close(), s.packets.Close(), s.server.Close()); err != nil {
			t.Error(err)
		}
	})
	deadline := time.Now().Add(patience)
	_, _ = s.question.SetDeadline(deadline), s.packets.SetDeadline(deadline)
	return s
}

func (s *setup) ask(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.question, text); err != nil {
		t.Fatal(err)
	}
}

// next returns the next question that the name server gets.
func (s *setup) next(t *testing.T) (string, net.Addr) {
	t.Helper()
	b := make([]byte, maxMessage)
	n, from, err := s.packets.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), from
}

// TestDatagrams: each question has a port of its own, by which it gets its own answer, once.
func TestDatagrams(t *testing.T) {
	s := newSetup(t, maxQuestions, patience)
	large := strings.Repeat("q", 60000)
	s.ask(t, "one")
	s.ask(t, large)
	ports := map[string]net.Addr{}
	for range 2 {
		q, from := s.next(t)
		ports[q] = from
	}
	if len(ports) != 2 || ports["one"].String() == ports[large].String() {
		t.Fatalf("questions from %v", ports)
	}
	for _, q := range []string{large, "one"} {
		for range 2 {
			if _, err := s.packets.WriteTo([]byte("answer to "+q), ports[q]); err != nil {
				t.Fatal(err)
			}
		}
		b := make([]byte, maxMessage)
		if n, err := s.question.Read(b); err != nil || string(b[:n]) != "answer to "+q {
			t.Errorf("%.20q, %v", b[:n], err)
		}
	}
}

// TestBounds: a name server that does not answer holds a bounded number of questions, for a bounded
// time.
func TestBounds(t *testing.T) {
	s := newSetup(t, 1, 300*time.Millisecond)
	s.ask(t, "one")
	s.next(t) // it has the one slot, until it is late
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection too many, or one without an answer: %v", err)
	}
	nstest.Eventually(t, patience, "a free slot", func() bool { return len(s.slots) == 0 })
	s.ask(t, "two")
	if q, _ := s.next(t); q != "two" {
		t.Errorf("%q", q)
	}
}

// TestConnections: what comes by TCP goes on whole, in both directions, also after the end of one.
func TestConnections(t *testing.T) {
	s := newSetup(t, maxQuestions, patience)
	text := strings.Repeat("message ", 10000)
	got := make(chan string, 1)
	go func() {
		c, err := s.server.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		if err != nil {
			b = []byte(err.Error())
		}
		got <- string(b)
		_, _ = c.Write(b)
	}()
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	back, err := io.ReadAll(c)
	if want := <-got; err != nil || want != text || string(back) != text {
		t.Errorf("%d bytes there, %d back, %v", len(want), len(back), err)
	}
	nstest.Eventually(t, patience, "no slot in use", func() bool { return len(s.slots) == 0 })
}

func TestMainErrors(t *testing.T) {
	for _, args := range [][]string{{}, {"1"}, {"-2"}, {"34"}, {"x"}, {"2", "2"}} {
		if err := Main(args); err == nil || !strings.HasPrefix(err.Error(), "DNS relay: ") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestLiveLoopbackOnly: no guest asks by the sockets, even where the kernel takes packets to
// 127.0.0.0/8 from a network.
func TestLiveLoopbackOnly(t *testing.T) {
	nstest.RequireRoot(t)
	server, guest := nstest.New(t), nstest.New(t)
	run := func(ns *netns.NS, line string) {
		t.Helper()
		err := ns.Do(func() error {
			out, err := exec.Command("sh", "-ec", line).CombinedOutput()
			if err != nil {
				err = errors.New(err.Error() + ": " + string(out))
			}
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	const localnet = "sysctl -qw net.ipv4.conf.all.route_localnet=1; "
	run(server, localnet+`ip link set lo up
		ip link add eth0 type veth peer name eth0 netns `+guest.Path()+`
		ip addr add 10.66.0.2/24 dev eth0; ip link set eth0 up`)
	run(guest, localnet+`ip addr add 10.66.0.9/24 dev eth0; ip link set eth0 up
		ip route add 127.0.1.1/32 via 10.66.0.2`)

	// An address that is not available does not keep the relay from the others.
	files, err := Open(server, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.1.1")})
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if len(files) != 2 || !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Fatalf("%d files, %v", len(files), err)
	}
	// A socket that any interface may use shows that packets of the guest arrive.
	var other net.Listener
	err = server.Do(func() (err error) { other, err = net.Listen("tcp", "127.0.1.1:54"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	dial := func(ns *netns.NS, address string) error {
		return ns.Do(func() error {
			c, err := net.DialTimeout("tcp", address, patience)
			if err != nil {
				return err
			}
			return c.Close()
		})
	}
	if err := dial(guest, "127.0.1.1:54"); err != nil {
		t.Fatalf("the guest's packets do not arrive: %v", err)
	}
	if err := dial(guest, "127.0.1.1:53"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a guest's connection: %v", err)
	}
	if err := dial(server, "127.0.1.1:53"); err != nil {
		t.Errorf("the server's connection: %v", err)
	}
}
