package vswitch

import (
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// pollers look for frames in guests' memory without waiting (Config.Poll), which saves a frame the
// guest's system call and the wake-up of a goroutine. A receiver begins with it after a batch for
// which it has waited, and waits again once nothing has come for the time idle. So a guest that
// sends nothing costs nothing.
type pollers struct {
	idle time.Duration
	on   []*poller // one for each of Config.PollCPUs
}

// A lookQueue is a queue that can be polled.
type lookQueue interface {
	queue

	// look is receive without waiting. If it is not ok, only receive finds out why.
	look(frames []frame) (n int, ok bool)
}

func newPollers(sw *Switch, idle time.Duration, cpus []int) *pollers {
	all := &pollers{idle: idle}
	for _, cpu := range cpus {
		p := &poller{joins: make(chan *polling, maxJoins)}
		all.on = append(all.on, p)
		sw.clock.Go(func() { p.run(sw, cpu) })
	}
	return all
}

// poll looks for frames of r, or has a poller do it, until none have come for a while.
func (all *pollers) poll(r *receiver) {
	q, ok := r.queue.(lookQueue)
	if !ok || all.idle == 0 || r.limited() {
		return
	}
	if len(all.on) == 0 {
		r.look(q, all.idle)
		return
	}
	if r.polling == nil {
		r.polling = &polling{receiver: r, queue: q, back: make(chan int, 1)}
	}
	p := all.on[(r.port.index+r.n)%len(all.on)]
	p.joins <- r.polling
	r.rest(<-r.polling.back)
}

// limited reports whether the port may send only so much that its receiver has to wait at times.
func (r *receiver) limited() bool { return !r.port.set.Load().up.limit.IsZero() }

// lookTimes is how often to look for frames for each look at the clock, which takes about as long.
const lookTimes = 16

// look looks for frames in this goroutine. It lets others run now and then: there may be more
// guests than threads.
func (r *receiver) look(q lookQueue, idle time.Duration) {
	last := time.Now()
	for time.Since(last) < idle {
		for range lookTimes {
			n, ok := q.look(r.frames[:])
			if !ok {
				return
			}
			if n > 0 {
				r.handle(n)
				r.rest(n)
				if r.limited() {
					return
				}
				last = time.Now()
			}
		}
		runtime.Gosched()
	}
}

// polling is a receiver with a poller. Its own goroutine waits meanwhile.
type polling struct {
	*receiver
	queue lookQueue
	came  bool          // frames, in the last turn
	since time.Duration // the end of the last turn in which frames came, by the poller's clock
	back  chan int      // the goroutine goes on, and rests after a batch of that many frames
}

// A poller is a thread on a CPU of its own that looks for frames of its members in turn.
type poller struct {
	joins   chan *polling
	members []*polling
}

// maxJoins limits the receivers that can join without waiting for the poller.
const maxJoins = 64

func (p *poller) run(sw *Switch, cpu int) {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		sw.notice("guests are polled on any CPU instead of %d: %v", cpu, err)
	}
	start := time.Now()
	for {
		if len(p.members) == 0 {
			select {
			case m := <-p.joins:
				p.add(m, time.Since(start))
			case <-sw.stop:
				return
			}
		}
		for len(p.joins) > 0 {
			p.add(<-p.joins, time.Since(start))
		}
		p.turn(time.Since(start))
	}
}

func (p *poller) add(m *polling, now time.Duration) {
	m.came, m.since = false, now
	p.members = append(p.members, m)
}

// turn looks for frames of all members, a few times.
func (p *poller) turn(now time.Duration) {
	for _, m := range p.members {
		if m.came {
			m.came, m.since = false, now
		}
	}
	for range lookTimes {
		for i := 0; i < len(p.members); {
			m := p.members[i]
			if rest, leaves := m.lookOnce(now - m.since); leaves {
				p.members = slices.Delete(p.members, i, i+1)
				m.back <- rest
				continue
			}
			i++
		}
	}
}

// lookOnce handles a batch of the member, which has had no frames for that long. It reports whether
// the member leaves, and after how many frames it then rests, as it does in its own goroutine.
func (m *polling) lookOnce(idle time.Duration) (rest int, leaves bool) {
	n, ok := m.queue.look(m.frames[:])
	switch {
	case n > 0:
		m.came = true
		m.handle(n)
		return n, m.refused > 0 || m.limited()
	case !ok:
		return 0, true
	}
	return 0, !m.came && idle >= m.sw.pollers.idle
}

// UsableCPUs returns the CPUs on which this process may run.
func UsableCPUs() (all []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("ask for the CPUs of this process: %w", err)
	}
	const most = 1024 // CPU_SETSIZE of sched.h
	for cpu := range most {
		if set.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	return all, nil
}
