package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A workload is traffic from A to B, by two programs of traffic.c.
type workload struct {
	name     string
	receive  []string // its mode, and the arguments after the port
	send     []string // its mode, and the arguments after address and port
	oneCPU   bool     // traffic and switch together
	evaluate func(n counts, s spent) map[string]float64
}

// Names of workloads and of figures.
const (
	tcp1, tcp4, small, trip = "tcp1", "tcp4", "udp64", "trip"

	gbps      = "Gb/s"
	secPerGB  = "CPU s/GB"
	peerPerGB = "switch s/GB"
	kpps      = "kpps"
	loss      = "loss %"
	usPerPkt  = "CPU µs/packet"
	p50, p99  = "p50 µs", "p99 µs"
)

func workloads() []*workload {
	return []*workload{
		{name: tcp1, receive: []string{"tcp-receive", "1"}, send: []string{"tcp-send", "1"}, evaluate: bulk},
		{name: tcp4, receive: []string{"tcp-receive", "4"}, send: []string{"tcp-send", "4"}, evaluate: bulk},
		{name: small, receive: []string{"udp-receive"}, send: []string{"udp-send"}, evaluate: packets},
		{name: trip, receive: []string{"echo"}, send: []string{"ask"}, oneCPU: true, evaluate: roundTrips},
	}
}

func workloadNamed(name string) *workload {
	for _, w := range workloads() {
		if w.name == name {
			return w
		}
	}
	return nil
}

// counts are what A sent and B received in the measured time.
type counts struct {
	sent, received uint64
	trips          []uint64 // by time
}

func bulk(n counts, s spent) map[string]float64 {
	gb := float64(n.received) / 1e9
	if gb == 0 {
		return map[string]float64{gbps: 0}
	}
	return map[string]float64{gbps: gb * 8 / s.wall, secPerGB: s.busy / gb, peerPerGB: s.peer / gb}
}

func packets(n counts, s spent) map[string]float64 {
	got := float64(n.received)
	if got == 0 {
		return map[string]float64{kpps: 0, loss: 100}
	}
	return map[string]float64{
		kpps: got / s.wall / 1e3, usPerPkt: s.busy / got * 1e6,
		loss: 100 * max(0, 1-got/float64(n.sent)), // packets in flight at the start may make it negative
	}
}

// tripBucket is BUCKET_NS of traffic.c, in microseconds, and tripBuckets its BUCKETS.
const (
	tripBucket  = 0.25
	tripBuckets = 4096
)

func roundTrips(n counts, _ spent) map[string]float64 {
	if n.received == 0 {
		return nil
	}
	return map[string]float64{p50: quantile(n.trips, 0.5), p99: quantile(n.trips, 0.99)}
}

// quantile returns the time in microseconds within which a share of the round trips completed, and
// at most that of the last bucket.
func quantile(trips []uint64, share float64) float64 {
	var all, sum uint64
	for _, n := range trips {
		all += n
	}
	for i, n := range trips {
		if sum += n; n > 0 && float64(sum) >= share*float64(all) {
			return (float64(i) + 0.5) * tripBucket
		}
	}
	return math.NaN()
}

// An end is one running traffic program, and the memory that it shares with us.
type end struct {
	*process
	shared []byte
}

const sharedLen = (2 + tripBuckets) * 8

func newEnd(s *station, argv []string) (*end, error) {
	fd, err := unix.MemfdCreate("counters", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "counters")
	defer f.Close()
	if err := f.Truncate(sharedLen); err != nil {
		return nil, err
	}
	shared, err := unix.Mmap(fd, 0, sharedLen, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	p, err := program{argv: argv, files: []*os.File{f}}.start(s.ns)
	if err != nil {
		_ = unix.Munmap(shared)
		return nil, err
	}
	return &end{p, shared}, nil
}

func (e *end) close() {
	e.stop()
	_ = unix.Munmap(e.shared)
}

func (e *end) word(i int) uint64 { return binary.LittleEndian.Uint64(e.shared[i*8:]) }

func (e *end) count() uint64 { return e.word(1) }

func (e *end) trips() []uint64 {
	n := make([]uint64, tripBuckets)
	for i := range n {
		n[i] = e.word(2 + i)
	}
	return n
}

// ready waits until the program's sockets are open.
func (e *end) ready() error {
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		if e.word(0) == 1 {
			return nil
		}
		if err := e.alive(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s does not become ready", e.name)
}

// settle is the time that traffic has to reach full speed.
const settle = 300 * time.Millisecond

// A sample is the result of one measurement.
type sample struct {
	Values  map[string]float64 `json:"values"`
	Foreign float64            `json:"foreign"` // share of the processors' time that other programs used

	// Distance is that of the two processors of guests that share their memory.
	Distance distance `json:"distance,omitzero"`
}

// measure runs a workload over l for that time, on a port that was not used lately.
func (h *harness) measure(l *lan, w *workload, long time.Duration) (sample, error) {
	s, err := h.tryMeasure(l, w, long)
	if err != nil {
		for _, p := range l.all() {
			if died := p.alive(); died != nil {
				err = fmt.Errorf("%w: %w", err, died)
			}
		}
		return s, fmt.Errorf("%s over %s: %w", w.name, l.peer.name, err)
	}
	return s, nil
}

func (h *harness) tryMeasure(l *lan, w *workload, long time.Duration) (sample, error) {
	h.port = 20000 + (h.port+1)%10000
	port := strconv.Itoa(h.port)
	receiver, err := newEnd(l.b, append([]string{h.tools.traffic, w.receive[0], port}, w.receive[1:]...))
	if err != nil {
		return sample{}, err
	}
	defer receiver.close()
	if err := receiver.ready(); err != nil {
		return sample{}, err
	}
	sender, err := newEnd(l.a, append([]string{h.tools.traffic, w.send[0], l.b.ip, port}, w.send[1:]...))
	if err != nil {
		return sample{}, err
	}
	defer sender.close()
	if err := sender.ready(); err != nil {
		return sample{}, err
	}
	ours := append(l.all(), receiver.process, sender.process)
	if w.oneCPU {
		defer pinAll(l.all(), h.cpus)
		if err := pinAll(ours, 1); err != nil {
			return sample{}, err
		}
	}
	time.Sleep(settle)
	return h.observe(l, w, ours, sender, receiver, long)
}

// observe returns the difference of all counters over the time.
func (h *harness) observe(l *lan, w *workload, ours []*process, sender, receiver *end,
	long time.Duration,
) (sample, error) {
	before, err := loadNow(h.kernel, ours, l.procs)
	if err != nil {
		return sample{}, err
	}
	n, trips := counts{sent: sender.count(), received: receiver.count()}, sender.trips()
	time.Sleep(long)
	n = counts{sent: sender.count() - n.sent, received: receiver.count() - n.received, trips: sender.trips()}
	for i := range trips {
		n.trips[i] -= trips[i]
	}
	after, err := loadNow(h.kernel, ours, l.procs)
	if err != nil {
		return sample{}, err
	}
	s := after.since(before, h.cpus)
	return sample{Values: w.evaluate(n, s), Foreign: s.foreign}, nil
}

// pinAll keeps processes on the first CPUs.
func pinAll(procs []*process, cpus int) error {
	var set unix.CPUSet
	for i := range cpus {
		set.Set(i)
	}
	for _, p := range procs {
		if err := p.pin(&set); err != nil {
			return err
		}
	}
	return nil
}
