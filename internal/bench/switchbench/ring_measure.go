package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/testpmd"
)

// A ringWork is a number of frames that go round between two guests.
type ringWork struct {
	name   string
	pieces string // lengths of a frame's buffers, as testpmd takes them
	bytes  int
	burst  int
	frames int // in each direction; 1 is one frame altogether
	ring   int // descriptors of each ring
	args   []string
}

// Names of the workloads and figures.
const (
	ring64, ring1500, ring64K, hop = "ring64", "ring1500", "ring64k", "hop"

	mpps       = "Mpps"
	nsPerFrame = "CPU ns/frame"    // of backend and frontend
	nsBackend  = "switch ns/frame" // of the backend
	usPerHop   = "µs/hop"
)

func ringWorks() []*ringWork {
	// A frame of 65000 bytes in 32 buffers. A backend may have as many frames as go round that it
	// has passed on and not given back yet, so a ring has room for twice as many.
	const long = 32
	pieces := strings.Repeat("2032,", long-1) + strconv.Itoa(65000-(long-1)*2032)
	return []*ringWork{
		{name: ring64, pieces: "64", bytes: 64, burst: 32, frames: 128, ring: 256},
		{name: ring1500, pieces: "1500", bytes: 1500, burst: 32, frames: 128, ring: 256},
		{
			name: ring64K, pieces: pieces, bytes: 65000, burst: 4, frames: 4, ring: 512,
			args: []string{"--tx-offloads=0x8000"},
		},
		{name: hop, pieces: "64", bytes: 64, burst: 1, frames: 1, ring: 256},
	}
}

func ringWorkNamed(name string) *ringWork {
	for _, w := range ringWorks() {
		if w.name == name {
			return w
		}
	}
	return nil
}

// start has the frames go round.
func (w *ringWork) start(p *testpmd.Testpmd) error {
	if _, err := p.Do(fmt.Sprintf("set burst %d", w.burst)); err != nil {
		return err
	}
	if w.frames > 1 {
		_, err := p.Do("set fwd io", fmt.Sprintf("start tx_first %d", w.frames/w.burst))
		return err
	}
	// Both guests send one, so that the switch knows their addresses.
	if _, err := p.Do("set fwd rxonly", "start tx_first 1"); err != nil {
		return err
	}
	if _, err := drain(p, w.bytes); err != nil {
		return err
	}
	// The first one sends it, and then both forward it.
	_, err := p.Do("stop", "set portlist 0", "start tx_first 1", "stop", "set portlist 0,1", "set fwd io", "start")
	return err
}

// all is how many frames go round.
func (w *ringWork) all() uint64 {
	if w.frames == 1 {
		return 1
	}
	return 2 * uint64(w.frames)
}

// received returns how many frames of that size the guests have received.
func received(p *testpmd.Testpmd, size int) (n uint64, err error) {
	for port := range 2 {
		c, err := p.Counters(port)
		if err == nil && c.RxBytes != c.RxFrames*uint64(size) {
			err = fmt.Errorf("%d frames of %d bytes have %d", c.RxFrames, size, c.RxBytes)
		}
		if err != nil {
			return 0, err
		}
		n += c.RxFrames
	}
	return n, nil
}

// round returns how many frames went round, and takes them out of the rings.
func round(p *testpmd.Testpmd, size int) (uint64, error) {
	if _, err := p.Do("stop"); err != nil {
		return 0, err
	}
	start, err := received(p, size)
	if err == nil {
		_, err = p.Do("set fwd rxonly", "start")
	}
	if err != nil {
		return 0, err
	}
	end, err := drain(p, size)
	return end - start, err
}

// drain waits until the guests receive no more frames, and returns how many there were.
func drain(p *testpmd.Testpmd, size int) (last uint64, err error) {
	for same := 0; same < 3; {
		n, err := received(p, size)
		if err != nil {
			return 0, err
		}
		if same++; n != last {
			last, same = n, 0
		}
		time.Sleep(20 * time.Millisecond)
	}
	return last, nil
}

// frontends starts a testpmd with both guests, and waits until the backend has them.
func (r *ring) frontends(dir string, w *ringWork) (*testpmd.Testpmd, error) {
	ring := strconv.Itoa(w.ring)
	cfg := testpmd.Config{
		Dir: dir, CPUs: strconv.Itoa(r.cpus[0]), Memory: 128, Mbufs: 4096,
		Args: append([]string{"--no-flush-rx", "--rxd=" + ring, "--txd=" + ring, "--txpkts=" + w.pieces}, w.args...),
	}
	for i, s := range r.sockets {
		own, other := guestMAC(i), guestMAC(1-i)
		cfg.Devices = append(cfg.Devices, testpmd.Guest{Path: s, MAC: own, Ring: w.ring}.Device(i))
		cfg.Args = append(cfg.Args, fmt.Sprintf("--eth-peer=%d,%s", i, other))
	}
	p, err := testpmd.Start(cfg)
	if err != nil {
		return nil, err
	}
	_, err = p.Do()
	for end := time.Now().Add(20 * time.Second); err == nil; time.Sleep(10 * time.Millisecond) {
		var ready bool
		if ready, err = r.peer.ready(r); ready || err != nil {
			break
		}
		if time.Now().After(end) {
			err = errors.New("the guests do not connect")
		}
	}
	if err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

func guestMAC(n int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(n + 1)} }

// ringTries is how often a sample is begun again, because frames were lost at its start.
const ringTries = 3

// measureRing takes a sample of frames that go round, with the distance of the two processors.
func (h *harness) measureRing(r *ring, w *ringWork, long time.Duration) (s sample, err error) {
	measure := h.tryRing
	if r.peer.name == ringTaps {
		measure = h.measureTaps
	}
	for range ringTries {
		var d distance
		if d[0], err = measureDistance(r.cpus); err == nil {
			s, err = measure(r, w, long)
		}
		if err == nil {
			d[1], err = measureDistance(r.cpus)
		}
		if s.Distance = d; err == nil {
			return s, nil
		}
	}
	for _, p := range r.all() {
		err = errors.Join(err, p.alive())
	}
	return s, fmt.Errorf("%s over %s: %w", w.name, r.peer.name, err)
}

func (h *harness) tryRing(r *ring, w *ringWork, long time.Duration) (sample, error) {
	r.signal(unix.SIGCONT)
	defer r.signal(unix.SIGSTOP)
	dir, err := os.MkdirTemp(h.tools.dir, "testpmd")
	if err != nil {
		return sample{}, err
	}
	defer os.RemoveAll(dir)
	p, err := r.frontends(dir, w)
	if err != nil {
		return sample{}, err
	}
	defer p.Kill()
	if err := w.start(p); err != nil {
		return sample{}, err
	}
	time.Sleep(settle)
	s, err := h.observeRing(w, long, p.PID(), r.pids(), func() (uint64, error) { return received(p, w.bytes) })
	if err != nil {
		return s, err
	}
	n, err := round(p, w.bytes)
	if err == nil && n != w.all() {
		err = fmt.Errorf("%d of %d frames go round", n, w.all())
	}
	return s, err
}

// measureTaps is tryRing for a bridge between taps, whose ends are one program.
func (h *harness) measureTaps(r *ring, w *ringWork, long time.Duration) (sample, error) {
	argv := r.onCPU(h.tools.taps, portName(0), portName(1), strconv.Itoa(w.bytes))
	e, err := newEnd(&station{ns: r.in}, argv)
	if err != nil {
		return sample{}, err
	}
	defer e.close()
	if err = e.ready(); err == nil {
		err = r.bridgePorts(portName(0), portName(1))
	}
	if err != nil {
		return sample{}, err
	}
	time.Sleep(settle)
	return h.observeRing(w, long, e.cmd.Process.Pid, nil, func() (uint64, error) { return e.count(), e.alive() })
}

// observeRing returns the figures of a time, in which count counts.
func (h *harness) observeRing(w *ringWork, long time.Duration, frontend int, backend []int,
	count func() (uint64, error),
) (s sample, err error) {
	ours := append(append(append([]int{}, h.kernel...), backend...), frontend)
	var at [2]load
	var busy [2]float64
	var frames [2]uint64
	for i := range at {
		if i == 1 {
			time.Sleep(long)
		}
		for _, pid := range backend {
			d, err := cpuOf(pid)
			if err != nil {
				return s, err
			}
			busy[i] += d.Seconds()
		}
		if frames[i], err = count(); err != nil {
			return s, err
		}
		if at[i], err = loadNow(ours, nil, nil); err != nil {
			return s, err
		}
	}
	spent := at[1].since(at[0], h.cpus)
	s.Foreign = spent.foreign
	n := float64(frames[1] - frames[0])
	if n == 0 {
		s.Values = map[string]float64{mpps: 0}
		return s, errors.New("no frame comes")
	}
	s.Values = map[string]float64{
		mpps: n / spent.wall / 1e6, gbps: n * float64(w.bytes) * 8 / spent.wall / 1e9,
		nsPerFrame: (at[1].own - at[0].own) / n * 1e9, nsBackend: (busy[1] - busy[0]) / n * 1e9,
	}
	if w.frames == 1 {
		s.Values = map[string]float64{usPerHop: spent.wall / n * 1e6}
	}
	return s, nil
}

// ringSeries starts the backends, and returns what to measure of them.
func (h *harness) ringSeries(o options, r *results) (all []series, err error) {
	candidates := ringPeers()
	if o.before != "" {
		candidates = append(candidates, ringsBefore()...)
	}
	for _, p := range candidates {
		if !o.peers.MatchString(p.name) {
			continue
		}
		works := p.chosen(o)
		if len(works) == 0 {
			continue
		}
		if p.missing != nil {
			if why := p.missing(&h.tools); why != nil {
				r.Missing = append(r.Missing, fmt.Sprintf("%s: %v", p.name, why))
				continue
			}
		}
		ring, err := newRing(p, o.cpus, &h.tools)
		if err != nil {
			return nil, err
		}
		h.rings = append(h.rings, ring)
		for _, w := range works {
			all = append(all, series{keyOf(p.name, 2, w.name), func(long time.Duration) (sample, error) {
				return h.measureRing(ring, w, long)
			}})
		}
	}
	return all, nil
}

// chosen returns the workloads of a backend.
func (p *ringPeer) chosen(o options) (works []*ringWork) {
	for _, w := range ringWorks() {
		if o.work.MatchString(w.name) && (p.works == nil || slices.Contains(p.works, w.name)) {
			works = append(works, w)
		}
	}
	return works
}
