package vswitch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/nstest"
)

// A talker is the other end of a stream port.
type talker struct {
	tb testing.TB
	*Port
	conn net.Conn
}

// talks adds a stream port whose other end the test has.
func (l *lan) talks(name string, cfg vport.Config) talker {
	l.tb.Helper()
	w, far, err := StreamPair()
	if err != nil {
		l.tb.Fatal(err)
	}
	p, err := l.sw.AddPort(name, w, cfg)
	if err != nil {
		l.tb.Fatal(err)
	}
	conn, err := net.FileConn(far)
	if err = errors.Join(err, far.Close()); err != nil {
		l.tb.Fatal(err)
	}
	l.tb.Cleanup(func() { _ = conn.Close() })
	return talker{l.tb, p, conn}
}

func (s talker) writes(b []byte) {
	s.tb.Helper()
	_ = s.conn.SetWriteDeadline(time.Now().Add(soon))
	if _, err := s.conn.Write(b); err != nil {
		s.tb.Fatal(err)
	}
}

// read returns the next frame.
func (s talker) read() ([]byte, error) {
	_ = s.conn.SetReadDeadline(time.Now().Add(soon))
	var prefix [prefixLen]byte
	if _, err := io.ReadFull(s.conn, prefix[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(prefix[:])
	if size > maxFrame {
		return nil, fmt.Errorf("a frame of %d bytes", size)
	}
	f := make([]byte, size)
	_, err := io.ReadFull(s.conn, f)
	return f, err
}

func (s talker) wants(what string, want []byte) {
	s.tb.Helper()
	if got, err := s.read(); err != nil || !bytes.Equal(got, want) {
		s.tb.Fatalf("%s: %x, %v: want %x", what, got, err, want)
	}
}

// TestStreamPort passes frames of streams and a datagram socket, with VLANs and settings.
func TestStreamPort(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"trunk": trunkAll(0)})
	big := access(10)
	big.MTU = 65535
	a, b := l.talks("a", big), l.talks("b", big)
	a.writes(prefixed(etherFrame(all, mac(1), nil, 60)))
	b.wants("a broadcast", etherFrame(all, mac(1), nil, 60))
	nstest.Eventually(t, soon, "the trunk sees it", func() bool {
		return bytes.Equal(l.stations["trunk"].read(), etherFrame(all, mac(1), tagged("8100:10"), 60))
	})
	long := etherFrame(mac(1), mac(2), nil, 65000)
	b.writes(prefixed(etherFrame(mac(1), mac(2), nil, 46), long, etherFrame(mac(1), mac(2), nil, 1500)))
	a.wants("a short frame", etherFrame(mac(1), mac(2), nil, 46))
	a.wants("a long frame", long)
	a.wants("a full frame", etherFrame(mac(1), mac(2), nil, 1500))
	l.send("trunk", etherFrame(mac(1), mac(7), tagged("8100:10"), 60))
	a.wants("a frame whose tag is gone", etherFrame(mac(1), mac(7), nil, 60))
	if st := a.Stats(); st.Kind != "stream" || st.State != vport.StateUp || st.MTU != 65535 ||
		st.Total().RxFrames != 1 || st.Total().TxFrames != 4 || st.Total().TxBytes != uint64(60+len(long)+1514+74) {
		t.Errorf("%+v", st)
	}
	_ = b.conn.Close()
	await(t, b.Port, vport.StateEnded)
	if !errors.Is(b.Err(), unix.ECONNRESET) {
		t.Error(b.Err())
	}
}

// TestHostileStreams: what one other end does to the framing, or does not read, costs it its own
// frames at most.
func TestHostileStreams(t *testing.T) {
	l := newLAN(t, nil)
	good, bad := l.talks("good", vport.Config{}), l.talks("bad", vport.Config{})
	hello := etherFrame(all, mac(9), nil, 46)
	bad.writes(prefixed(nil, []byte("short"), make([]byte, maxFrame+1), hello))
	good.wants("a frame after frames of 0, 5 and too many bytes", hello)
	if bad.Dropped(Short) != 2 || bad.Dropped(Giant) != 1 {
		t.Errorf("drops: %v", bad.Stats().Drops)
	}
	silent := l.talks("silent", vport.Config{})
	silent.writes(prefixed(hello)[:30])
	bad.writes(prefixed(hello))
	good.wants("a frame beside half a frame", hello)
	silent.wants("a frame for one who has sent half a frame", hello)
	silent.writes(prefixed(hello)[30:])
	good.wants("the whole of it", hello)

	bad.writes([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3})
	await(t, bad.Port, vport.StateEnded)
	good.writes(prefixed(hello))
	silent.wants("a frame without the one that is gone", hello)
}

// TestStreamThatIsNotRead fills a port whose other end does not read, then reads: no frame is torn,
// all that were not dropped arrive in their order, and meanwhile nobody waits.
func TestStreamThatIsNotRead(t *testing.T) {
	l := newLAN(t, nil)
	slow, other := l.talks("slow", vport.Config{}), l.talks("other", vport.Config{})
	var sources []talker
	for i := range 3 {
		sources = append(sources, l.talks(fmt.Sprint("source", i), vport.Config{}))
	}
	slow.writes(prefixed(etherFrame(all, mac(1), nil, 46)))
	other.wants("an address to learn", etherFrame(all, mac(1), nil, 46))
	for _, s := range sources {
		s.wants("an address to learn", etherFrame(all, mac(1), nil, 46))
	}
	const frames = 4000 // of each source; more than the buffers hold
	var sending sync.WaitGroup
	for n, s := range sources {
		sending.Go(func() {
			for i := range frames {
				f := etherFrame(mac(1), mac(byte(2+n)), nil, 46+i%1400)
				binary.BigEndian.PutUint32(f[etherLen:], uint32(i))
				s.writes(prefixed(f))
			}
		})
	}
	sending.Wait()
	sources[0].writes(prefixed(etherFrame(all, mac(2), nil, 46)))
	other.wants("a frame beside a port that is full", etherFrame(all, mac(2), nil, 46))
	nstest.Eventually(t, soon, "all frames are handled", func() bool {
		st := slow.Stats().Total()
		return st.TxFrames+slow.Dropped(Full) == frames*uint64(len(sources))+1
	})
	if slow.Dropped(Full) == 0 {
		t.Error("nothing was dropped")
	}
	last := map[byte]int{}
	for range slow.Stats().Total().TxFrames {
		f, err := slow.read()
		if err != nil {
			t.Fatal(err)
		}
		if f[0] == 0xff {
			continue
		}
		from, i := f[11], int(binary.BigEndian.Uint32(f[etherLen:]))
		want := etherFrame(mac(1), mac(from), nil, 46+i%1400)
		binary.BigEndian.PutUint32(want[etherLen:], uint32(i))
		if before, seen := last[from]; !bytes.Equal(f, want) || seen && before >= i {
			t.Fatalf("frame %d of %d is torn, or comes after %d", i, from, before)
		}
		last[from] = i
	}
	other.writes(prefixed(etherFrame(mac(1), mac(5), nil, 46)))
	slow.wants("a frame once it reads", etherFrame(mac(1), mac(5), nil, 46))
}

// TestStreamsComeAndGo: the port listens, and is down without another end.
func TestStreamsComeAndGo(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"far": {}})
	path := filepath.Join(t.TempDir(), "stream")
	f, err := endpoint.ListenStream(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := OpenStream(f, "")
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := l.sw.AddPort("guest", w, vport.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		await(t, p, vport.StateDown)
		l.send("far", etherFrame(mac(1), mac(2), nil, 46))
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s := talker{t, p, conn}
		await(t, p, vport.StateUp)
		s.writes(prefixed(etherFrame(mac(9), mac(1), nil, 46), []byte("half")[:2+i])) // not all is complete
		nstest.Eventually(t, soon, "its address is learned", func() bool {
			return l.sw.fdb.Lookup(keyOf(macWord(mac(1)), 1)) == p.index
		})
		l.send("far", etherFrame(mac(1), mac(2), nil, 46))
		s.wants("a frame", etherFrame(mac(1), mac(2), nil, 46))
		_ = conn.Close()
		await(t, p, vport.StateDown)
	}
	l.endsGuest(p, path)
}

// TestStreamConnects has a port that connects to servers, which come later and go.
func TestStreamConnects(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"far": {}})
	path := filepath.Join(t.TempDir(), "server")
	dir, err := endpoint.StreamDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := OpenStream(dir, "server")
	if err = errors.Join(err, dir.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := l.sw.AddPort("passt", w, vport.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		at, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := at.AcceptUnix()
		if err = errors.Join(err, at.Close()); err != nil {
			t.Fatal(err)
		}
		await(t, p, vport.StateUp)
		l.send("far", etherFrame(all, mac(2), nil, 46))
		talker{t, p, conn}.wants("a broadcast", etherFrame(all, mac(2), nil, 46))
		_ = conn.Close()
		await(t, p, vport.StateDown)
	}
}
