package server

import (
	"slices"
	"time"

	"vmnet/bridge/vswitch/control"
)

// How a keeper hands over what it keeps, and ends.

// halt stops the keeper between two steps, until the function that it returns is called.
func (k *keeper) halt() (goOn func()) {
	if k == nil {
		return func() {}
	}
	k.talking.Lock()
	return k.talking.Unlock
}

// storedOf returns what is stored of a port, for another process. The keeper is halted.
func (k *keeper) storedOf(sh *shelf) (s control.Stored) {
	if k == nil || sh == nil {
		return s
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s = control.Stored{ID: sh.id, Files: sh.stored, Session: sh.session.stored}
	if n := len(sh.versions); n > 0 {
		s.Version = sh.versions[n-1]
	}
	return s
}

// rest returns what else another process must know of the store. The keeper is halted.
func (k *keeper) rest() (stale []string, whole bool) {
	if k == nil {
		return nil, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.stale), k.whole
}

// has says that the store has wholeName.
func (k *keeper) hasWhole(whole bool) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.whole = k.whole || whole
}

// detach leaves what is stored to another process.
func (k *keeper) detach() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.detached = true
}

// stop ends the keeper. Unless it is detached, it has all forgotten first, wholeName before the
// rest: the next process then begins with no part of it.
func (k *keeper) stop(most time.Duration) {
	if k != nil {
		k.once.Do(func() { k.doStop(most) })
	}
}

func (k *keeper) doStop(most time.Duration) {
	k.mu.Lock()
	k.wantWhole = false
	if !k.detached {
		k.stale = slices.Insert(k.stale, k.forgetting, wholeName)
		for _, sh := range k.shelves {
			k.shelve(sh)
		}
		k.work()
	}
	k.mu.Unlock()
	k.await(most)
	close(k.end)
	<-k.ended
	for _, sh := range k.shelves {
		sh.session.set(nil)
	}
}
