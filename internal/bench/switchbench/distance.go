package main

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Two processors are near if a cache line's round trip between them takes at most nearest, as it
// does within a shared cache. The processors of a virtual machine may move on their host, so that
// they are near for some seconds and then are not.
const nearest = 250 // ns

// A distance is between two processors, before and after a sample, in nanoseconds.
type distance [2]float64

// The kinds of a distance. Figures of different kinds are not compared.
const (
	near  = "near"
	far   = "far"
	mixed = "mixed"
)

// kind is empty if the distance was not measured.
func (d distance) kind() string {
	switch {
	case d == distance{}:
		return ""
	case d[0] <= nearest && d[1] <= nearest:
		return near
	case d[0] > nearest && d[1] > nearest:
		return far
	}
	return mixed
}

const (
	pingRounds  = 500
	pingBatches = 20
	pingLimit   = 2 * time.Second // another program may have one of the processors for a while
)

// pingPong is a word that two threads write in turn, alone in its cache lines.
type pingPong struct {
	_    [128]byte
	word atomic.Uint32
	_    [124]byte
}

// await waits until the word has a value, and reports whether it did before the limit.
func (p *pingPong) await(value uint32, limit time.Time) bool {
	for {
		for range 1 << 14 {
			if p.word.Load() == value {
				return true
			}
		}
		if time.Now().After(limit) {
			return false
		}
	}
}

// measureDistance returns the round trip of a cache line between two processors in nanoseconds: the
// shortest of several averages, since interruptions only make it longer.
func measureDistance(cpus [2]int) (float64, error) {
	var p pingPong
	var both sync.WaitGroup
	best, limit := math.Inf(1), time.Now().Add(pingLimit)
	errs := [2]error{}
	for i, cpu := range cpus {
		both.Go(func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			var set unix.CPUSet
			set.Set(cpu)
			if errs[i] = unix.SchedSetaffinity(0, &set); errs[i] != nil {
				return
			}
			mine := uint32(i)
			for range pingBatches {
				start := time.Now()
				for range pingRounds {
					if !p.await(mine, limit) {
						errs[i] = fmt.Errorf("CPU %d has no time for the other one", cpus[1-i])
						return
					}
					p.word.Store(1 - mine)
				}
				if i == 0 {
					best = min(best, float64(time.Since(start).Nanoseconds())/pingRounds)
				}
			}
		})
	}
	both.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return 0, fmt.Errorf("measure the distance of CPUs %d and %d: %w", cpus[0], cpus[1], err)
	}
	return best, nil
}
