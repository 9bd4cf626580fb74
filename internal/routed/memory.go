package routed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
)

// The host remembers which of its settings were changed in the alias of a persistent tap that is
// never up. It outlives the guests, however they end, and ends with the settings: with the netns,
// and so with the machine's next start. It has one queue, which one process at a time can open: so
// it is the lock of what it remembers, too, that ends with its holder.

// memoryName is the name of that tap.
const memoryName = "vmnet-routed"

const keyMemory = "routed"

// lockWait bounds the wait for another process that changes the settings, and lockPoll the pause
// between two looks.
const (
	lockWait = 5 * time.Second
	lockPoll = 5 * time.Millisecond
)

// change is a setting of a link that was changed. Of link 0 it is that of all links.
type change struct {
	link int
	what kind
}

type kind string

// The settings, as the alias calls them.
const (
	forward4 kind = "4" // net/ipv4/conf/LINK/forwarding
	forward6 kind = "6" // net/ipv6/conf/LINK/forwarding
	force6   kind = "f" // net/ipv6/conf/LINK/force_forwarding
	proxyNDP kind = "p" // net/ipv6/conf/LINK/proxy_ndp
	acceptRA kind = "a" // net/ipv6/conf/LINK/accept_ra
)

// kinds lists them in the order in which they are set back: accept_ra counts while a link forwards.
var kinds = []kind{forward4, forward6, force6, proxyNDP, acceptRA}

func byKind(a, b change) int { return slices.Index(kinds, a.what) - slices.Index(kinds, b.what) }

// memory is what the host remembers, while this process has the lock.
type memory struct {
	h       *Host
	tap     *tun.Tap
	link    *rtnl.Link
	changes []change
}

// lock opens the memory, which is empty if there is none.
func (h *Host) lock(ctx context.Context) (*memory, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait,
		fmt.Errorf("another process has held %s for %v", memoryName, lockWait))
	defer cancel()
	for {
		m, err := h.tryLock()
		if m != nil || err != nil {
			return m, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}

// tryLock returns nil if another process has the lock.
func (h *Host) tryLock() (*memory, error) {
	tap, err := tun.Create(h.NS, memoryName, false)
	made := err == nil
	if errors.Is(err, syscall.EBUSY) {
		l, readErr := h.NL.Link(memoryName)
		switch {
		case errors.Is(readErr, fs.ErrNotExist):
			return nil, nil
		case readErr != nil:
			return nil, readErr
		case l.Tun == nil || l.Tun.Persist && !isMemory(l):
			return nil, fmt.Errorf("interface %s is not vmnet's (rename it: ip link set %[1]s name NAME)", memoryName)
		case !l.Tun.Persist: // its holder is about to make it so, or to end it
			return nil, nil
		}
		tap, err = tun.Open(h.NS, memoryName, false, 1)
	}
	if errors.Is(err, syscall.EBUSY) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m := &memory{h: h, tap: tap}
	if m.link, err = h.NL.Link(memoryName); err == nil && !made && !isMemory(m.link) {
		// It has ended, and the open has made another one, without an owner.
		return nil, tap.Close()
	}
	if err == nil {
		m.changes, err = parseMemory(m.link.Alias)
	}
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return m, nil
}

// open is lock, or reads the memory alone if it is not to be changed.
func (h *Host) open(ctx context.Context, dry bool) (*memory, error) {
	if !dry {
		return h.lock(ctx)
	}
	l, err := h.NL.Link(memoryName)
	if err != nil || !isMemory(l) {
		return &memory{h: h}, rtnl.IgnoreNotExist(err)
	}
	changes, err := parseMemory(l.Alias)
	return &memory{h: h, changes: changes}, err
}

// close releases the lock.
func (m *memory) close() error {
	if m.tap == nil {
		return nil
	}
	return m.tap.Close()
}

// save writes the memory. It is gone once the lock is released, if it is empty.
func (m *memory) save() error {
	text := formatMemory(m.changes)
	if len(text) > alias.Max {
		return fmt.Errorf("the settings of uplinks need %d bytes, and an interface alias has %d (use fewer uplinks)",
			len(text), alias.Max)
	}
	if len(m.changes) == 0 {
		return m.tap.Unpersist()
	}
	if err := m.h.NL.SetQuiet(m.link.Index, rtnl.Alias(text)); err != nil {
		return err
	}
	return m.tap.Persist(0)
}

func isMemory(l *rtnl.Link) bool {
	return strings.HasPrefix(l.Alias, alias.Prefix+keyMemory+"=")
}

// IsMemory reports whether a link is the memory of a host.
func IsMemory(l *rtnl.Link) bool { return l.Name == memoryName && isMemory(l) }

// formatMemory returns the alias: the changed settings of each link, by its index.
func formatMemory(changes []change) string {
	text := alias.Prefix + keyMemory + "=host"
	of := map[int][]string{}
	var links []int
	for _, c := range changes {
		if of[c.link] == nil {
			links = append(links, c.link)
		}
		of[c.link] = append(of[c.link], string(c.what))
	}
	slices.Sort(links)
	for _, l := range links {
		text += fmt.Sprintf(" %d=%s", l, strings.Join(of[l], ","))
	}
	return text
}

// parseMemory reads the alias; an empty one has no changes. It skips what it does not know.
func parseMemory(text string) (changes []change, err error) {
	if text == "" {
		return nil, nil
	}
	for field := range strings.SplitSeq(strings.TrimPrefix(text, alias.Prefix), " ") {
		key, value, err := alias.Field(field)
		if err != nil {
			return nil, fmt.Errorf("the alias of %s: %w", memoryName, err)
		}
		link, err := strconv.Atoi(key)
		if err != nil || link < 0 {
			continue
		}
		for what := range strings.SplitSeq(value, ",") {
			if slices.Contains(kinds, kind(what)) {
				changes = append(changes, change{link, kind(what)})
			}
		}
	}
	return changes, nil
}
