package rtnl

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

func open(t testing.TB, ns *netns.NS) *Conn {
	t.Helper()
	c, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// many makes that many bridges, br0 and so on.
func many(t testing.TB, c *Conn, n int) {
	t.Helper()
	for i := range n {
		if err := c.Create("bridge", Name(fmt.Sprint("br", i))); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLiveLinksThatComeAndGo: while links are made and deleted all the time, every list succeeds
// and has all links that stay.
func TestLiveLinksThatComeAndGo(t *testing.T) {
	const links, listings = 300, 20
	ns := nstest.New(t)
	c := open(t, ns)
	many(t, c, links)
	done := make(chan struct{})
	var busy sync.WaitGroup
	for i := range 2 {
		other := open(t, ns)
		busy.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				name := fmt.Sprint("passing", i)
				l, err := other.Link(name)
				if err != nil {
					err = other.Create("bridge", Name(name))
				} else {
					err = other.Delete(l.Index)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	disturbed := 0
	for range listings {
		if _, err := c.sock.execute(c.linkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP, 0, nil),
			unix.RTM_NEWLINK); err != nil {
			disturbed++
		}
		found, err := c.Links("bridge", 0)
		if err != nil {
			t.Fatal(err)
		}
		stay := 0
		for _, l := range found {
			if l.Name[:2] == "br" {
				stay++
			}
		}
		if stay != links {
			t.Errorf("%d of %d links listed", stay, links)
		}
	}
	close(done)
	busy.Wait()
	t.Logf("%d of %d single dumps were interrupted", disturbed, listings)
}

// TestLiveCompleteListing: links that only earlier dumps had are in the result in their current
// state.
func TestLiveCompleteListing(t *testing.T) {
	c := open(t, nstest.New(t))
	many(t, c, 3)
	all, err := c.dumpLinks(noLimit, nil)
	if err != nil {
		t.Fatal(err)
	}
	latest, missing := map[int]*Link{}, map[int]*Link{}
	for index, l := range all {
		switch l.Name {
		case "br0":
			missing[index] = l
		case "br1":
			missing[index] = l
			if err := c.Delete(index); err != nil {
				t.Fatal(err)
			}
		default:
			latest[index] = l
		}
	}
	found, err := c.complete(OwnNS, latest, missing)
	var names []string
	for _, l := range found {
		names = append(names, l.Name)
	}
	if got := fmt.Sprint(names); err != nil || got != "[lo br0 br2]" {
		t.Errorf("%s, %v", got, err)
	}
}

// TestLiveEachListingIsDisturbed: each dump is interrupted, and lacks another link. The result has
// all links that still exist.
func TestLiveEachListingIsDisturbed(t *testing.T) {
	c := open(t, nstest.New(t))
	many(t, c, 12)
	gone, err := c.Link("br1")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	found, err := c.together(OwnNS, func() (map[int]*Link, error) {
		some, err := c.dumpLinks(noLimit, nil)
		if err != nil {
			t.Fatal(err)
		}
		for index, l := range some {
			if l.Name == fmt.Sprint("br", 2+read) {
				delete(some, index)
			}
		}
		if read++; read == 1 {
			err = c.Delete(gone.Index)
		}
		return some, errors.Join(ErrDisturbed, err)
	})
	if err != nil || read != linkTries || len(found) != 12 {
		t.Errorf("%d links, %v, after %d dumps", len(found), err, read)
	}
	for _, l := range found {
		if l.Index == gone.Index {
			t.Errorf("%s is gone", l.Name)
		}
	}
}

// TestLiveLinksOfAnUnknownKind: the kernel ignores the filter for a kind that it does not know.
func TestLiveLinksOfAnUnknownKind(t *testing.T) {
	c := open(t, nstest.New(t))
	many(t, c, 2)
	for kind, want := range map[string]int{"no-such-kind": 0, "bridge": 2, "": 3} {
		if found, err := c.Links(kind, 0); err != nil || len(found) != want {
			t.Errorf("kind %q: %d links, %v: want %d", kind, len(found), err, want)
		}
	}
	if found, err := c.Links("", 12345); len(found) != 0 {
		t.Errorf("of no master: %+v, %v", found, err)
	}
}

// TestLiveListingElsewhere: of another netns, a disturbed listing is completed from that netns, and
// no more links than the bound are kept.
func TestLiveListingElsewhere(t *testing.T) {
	here, there := nstest.New(t), nstest.New(t)
	c, other := open(t, here), open(t, there)
	many(t, c, 1)
	many(t, other, 3)
	if err := c.AssignNetnsID(there); err != nil {
		t.Fatal(err)
	}
	id, err := c.NetnsID(there)
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	found, err := c.together(id, func() (map[int]*Link, error) {
		all, err := other.dumpLinks(noLimit, nil)
		if read++; read == linkTries {
			for index, l := range all {
				if l.Name != "lo" {
					delete(all, index)
				}
			}
		}
		return all, errors.Join(ErrDisturbed, err)
	})
	var names []string
	for _, l := range found {
		names = append(names, l.Name)
	}
	if got := fmt.Sprint(names); err != nil || got != "[lo br0 br1 br2]" {
		t.Errorf("%s, %v", got, err)
	}
	if some, err := c.dumpLinks(2, []Attr{target(id)}); err != nil || len(some) != 2 {
		t.Errorf("%d links of at most 2, %v", len(some), err)
	}
	if err := c.DeleteIn(id, found[1].Index); err != nil {
		t.Fatal(err)
	}
	if left, err := c.LinksIn(id, "bridge"); err != nil || len(left) != 2 {
		t.Errorf("%d bridges left, %v", len(left), err)
	}
}
