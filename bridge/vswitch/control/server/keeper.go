package server

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"vmnet/bridge/vswitch/control"
)

// A keeper keeps ports in a store. Only its goroutine talks to the store, one step at a time. It
// may be slow, and nobody waits for it but by await. A nil keeper keeps nothing.
type keeper struct {
	store Store
	most  int // files in the store; 0 for not known
	note  func(string)

	wake, end, ended chan struct{}
	once             sync.Once
	talking          sync.Mutex // held during a step, and by halt

	mu         sync.Mutex
	shelves    map[int]*shelf // by their ids
	queue      []*shelf       // to be stored
	later      []*shelf       // those that failed
	full       []*shelf       // those without room
	stale      []string       // to be forgotten; their ids are not used again before
	forgetting int            // how many of these are being forgotten
	unsure     bool           // the store has not confirmed the last Forget
	version    int            // the greatest of a description
	whole      bool           // the store has wholeName
	wantWhole  bool
	detached   bool
	settled    chan struct{} // closed when nothing is left to do, but what has failed
}

// A shelf is what a store has of one port, and is to have.
type shelf struct {
	id       int
	name     string     // of the port
	files    []*os.File // the port's own, whose entry closes them
	holder   *holder    // may be nil
	pid      int        // of the holder
	want     []byte     // the description
	has      []byte     // the one in the store; nil if there is none, or another process has stored it
	stored   int        // how many files are in the store
	versions []int      // of descriptions in the store; the last one is the newest
	session  shelvedSession
	queued   bool
	noted    bool // that it has failed
}

// retryAfter is how long the keeper waits until it tries again what has failed.
const retryAfter = time.Second

func newKeeper(store Store, most int, note func(string)) *keeper {
	k := &keeper{
		store: store, most: most, note: note, shelves: map[int]*shelf{},
		wake: make(chan struct{}, 1), end: make(chan struct{}), ended: make(chan struct{}),
		settled: make(chan struct{}),
	}
	close(k.settled)
	go k.run()
	return k
}

func (k *keeper) run() {
	defer close(k.ended)
	for {
		for k.step() {
			select {
			case <-k.end:
				return
			default:
			}
		}
		select {
		case <-k.wake:
		case <-k.failed():
		case <-k.end:
			return
		}
		k.again()
	}
}

// failed returns a channel that receives when it is time to try again what has failed, if
// something has.
func (k *keeper) failed() <-chan time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.later) == 0 && !k.unsure {
		return nil
	}
	return time.After(retryAfter)
}

func (k *keeper) again() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.queue, k.later, k.unsure = append(k.queue, k.later...), nil, false
}

// step does the next thing, and reports whether there was one. What is stale goes first: a store
// has no second copy of a file.
func (k *keeper) step() bool {
	k.talking.Lock()
	defer k.talking.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.detached:
	case len(k.stale) > 0 && !k.unsure:
		k.forgetStale()
		return true
	case len(k.queue) > 0:
		k.advance(k.queue[0])
		return true
	case k.wantWhole && !k.whole:
		k.storeWhole()
		return true
	}
	select {
	case <-k.settled:
	default:
		close(k.settled)
	}
	return false
}

// outside calls f without the lock, since f may wait.
func (k *keeper) outside(f func() error) error {
	k.mu.Unlock()
	defer k.mu.Lock()
	return f()
}

func (k *keeper) say(format string, args ...any) {
	_ = k.outside(func() error { k.note(fmt.Sprintf(format, args...)); return nil })
}

func (k *keeper) forgetStale() {
	names := slices.Clone(k.stale)
	k.forgetting = len(names)
	err := k.outside(func() error { return k.store.Forget(names...) })
	k.forgetting = 0
	if err != nil { // the store may have forgotten them, or does so later
		k.unsure = true
		k.say("files of ports that are gone are still stored: %v", err)
		return
	}
	k.stale = slices.Delete(k.stale, 0, len(names))
	k.queue, k.full = append(k.queue, k.full...), nil
}

// advance stores the next file of a port that is queued, or else its description.
func (k *keeper) advance(sh *shelf) {
	described := sh.stored == len(sh.files) && bytes.Equal(sh.has, sh.want)
	if k.shelves[sh.id] != sh || described && sh.session.next == nil {
		k.queue, sh.queued, sh.noted = k.queue[1:], false, false
		return
	}
	if sh.stored == 0 && !k.hasRoomFor(sh, len(sh.files)) {
		return
	}
	var err error
	if described {
		err = k.advanceSession(sh)
	} else if n := sh.stored; n < len(sh.files) {
		sh.stored++ // drop names it, even if the store gets it only then
		f, h, pid := sh.files[n], sh.holder, sh.pid
		if n > 0 {
			h = nil
		}
		if err = k.outside(func() error { return storeFile(k.store, fileName(sh.id, n), f, h, pid) }); err != nil {
			sh.stored = n
		}
	} else {
		err = k.describe(sh)
	}
	if err != nil && k.shelves[sh.id] == sh {
		k.queue, k.later = k.queue[1:], append(k.later, sh)
		k.fails(sh, err)
	}
}

// fails notes once that a port is not stored. An older description may be: it does no harm.
func (k *keeper) fails(sh *shelf, err error) {
	if !sh.noted {
		sh.noted = true
		k.say("port %s would end with this process: %v", sh.name, err)
	}
}

// hasRoomFor reports whether there is room for so many more files of a port, its description, and
// the next version of it before the older one is forgotten. If not, the port waits. The manager
// tells nobody what it drops.
func (k *keeper) hasRoomFor(sh *shelf, files int) bool {
	n := 1 + len(k.stale) + files + 2 // that of wholeName first
	for _, other := range k.shelves {
		n += other.stored + len(other.versions) + other.session.stored
	}
	if k.most == 0 || n <= k.most {
		return true
	}
	k.queue, k.full = k.queue[1:], append(k.full, sh)
	k.fails(sh, fmt.Errorf("the store has room for %d files (raise FileDescriptorStoreMax= of the unit)", k.most))
	return false
}

// storeFile stores a file, which is the pidfd of a holder unless h is nil.
func storeFile(store Store, name string, f *os.File, h *holder, pid int) error {
	if h != nil {
		if own := h.again(pid); own != nil {
			defer own.Close()
			f = own
		}
	}
	return store.Store(name, f)
}

// describe stores the description under a version of its own, so that there is always a whole one.
func (k *keeper) describe(sh *shelf) error {
	k.version++
	text, version, older := sh.want, k.version, len(sh.versions)
	sh.versions = append(sh.versions, version)
	err := k.outside(func() error { return k.storeText(describedBy(sh.id, version), text) })
	if err != nil {
		sh.versions = sh.versions[:older]
		return err
	}
	sh.has = text
	if k.shelves[sh.id] == sh {
		for _, v := range sh.versions[:older] {
			k.stale = append(k.stale, describedBy(sh.id, v))
		}
		sh.versions = sh.versions[older:]
	}
	return nil
}

func (k *keeper) storeText(name string, text []byte) error {
	f, err := sealed(text)
	if err != nil {
		return err
	}
	defer f.Close()
	return k.store.Store(name, f)
}

func (k *keeper) storeWhole() {
	k.wantWhole = false
	err := k.outside(func() error { return k.storeText(wholeName, []byte(keptFormat)) })
	if k.whole = err == nil; err != nil {
		k.say("the ports would end with this process: %v", err)
	}
}

// work says that there is something to do. The caller holds the lock.
func (k *keeper) work() {
	select {
	case <-k.settled:
		k.settled = make(chan struct{})
	default:
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// put has a port stored with that description, or what has changed of it.
func (k *keeper) put(e *entry, text []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.shelf == nil {
		e.shelf = &shelf{id: k.free()}
		k.shelves[e.shelf.id] = e.shelf
	}
	sh := e.shelf
	sh.name, sh.files, sh.holder, sh.pid, sh.want = e.Name, slices.Clone(e.files), e.holder, e.Holder, text
	if !sh.queued {
		sh.queued, k.queue = true, append(k.queue, sh)
		k.work()
	}
}

// free returns the lowest id that is not in the store: names are to be short.
func (k *keeper) free() int {
	used := map[int]bool{}
	for _, name := range k.stale {
		if id, _, ok := parseName(name); ok {
			used[id] = true
		}
	}
	for id := 1; ; id++ {
		if k.shelves[id] == nil && !used[id] {
			return id
		}
	}
}

// drop has a port forgotten. Call it before the port's files are closed.
func (k *keeper) drop(sh *shelf) {
	if k == nil || sh == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shelve(sh)
	k.work()
}

// shelve makes the names of a port stale, those of its descriptions first: files without one are
// nothing to the next process.
func (k *keeper) shelve(sh *shelf) {
	if k.shelves[sh.id] != sh {
		return
	}
	delete(k.shelves, sh.id)
	for _, v := range sh.versions {
		k.stale = append(k.stale, describedBy(sh.id, v))
	}
	for n := range sh.stored {
		k.stale = append(k.stale, fileName(sh.id, n))
	}
	k.stale = append(k.stale, sessionNames(sh.id, sh.session.stored)...)
	sh.session.set(nil)
}

// forget has names forgotten.
func (k *keeper) forget(names ...string) {
	if k == nil || len(names) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		_, version, _ := parseName(name)
		k.version = max(k.version, version)
	}
	k.stale = append(k.stale, names...)
	k.work()
}

// adopt takes over what another process has stored of a port. It returns nil if that is nothing, or
// another port's. text and session are the descriptions, or nil if they are not known.
func (k *keeper) adopt(s control.Stored, text, session []byte) *shelf {
	if k == nil || s.ID == 0 {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shelves[s.ID] != nil {
		return nil
	}
	sh := &shelf{id: s.ID, stored: s.Files, has: text, session: shelvedSession{stored: s.Session, has: session}}
	if s.Version > 0 {
		sh.versions = []int{s.Version}
	}
	k.version = max(k.version, s.Version)
	k.shelves[s.ID] = sh
	return sh
}

// await waits until all is stored or forgotten that was to be, or has failed once. It waits for a
// slow store no longer than that.
func (k *keeper) await(most time.Duration) {
	if k == nil {
		return
	}
	k.mu.Lock()
	settled := k.settled
	k.mu.Unlock()
	select {
	case <-settled:
	case <-k.ended:
	case <-time.After(most):
	}
}

// keepWhole has the store say that it has all ports.
func (k *keeper) keepWhole() {
	if k == nil {
		return
	}
	k.mu.Lock()
	k.wantWhole = !k.whole
	k.work()
	k.mu.Unlock()
}
