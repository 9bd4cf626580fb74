package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
)

const within = 30 * time.Second

// bridge is a row as these tests read it.
type bridge struct {
	UUID        UUID      `json:"_uuid"`
	Name        string    `json:"name"`
	Ports       Set[UUID] `json:"ports"`
	FailMode    Set[string]
	ExternalIDs Map  `json:"external_ids"`
	STP         bool `json:"stp_enable"`
}

var bridgeColumns = []string{"_uuid", "name", "ports", "fail_mode", "external_ids", "stp_enable"}

func dial(t *testing.T, o *ovstest.OVS) *Client {
	t.Helper()
	c, err := Dial(t.Context(), "unix:"+o.Socket(), "Open_vSwitch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func transact(t *testing.T, c *Client, ops ...Op) []Result {
	t.Helper()
	rs, err := c.Transact(t.Context(), ops...)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// addBridge inserts a bridge with one port, into a database whose switch need not run.
func addBridge(t *testing.T, c *Client, name string, ids Map) UUID {
	t.Helper()
	rs := transact(t, c,
		Insert("Interface", "i", Row{"name": name, "type": "internal"}),
		Insert("Port", "p", Row{"name": name, "interfaces": Named("i")}),
		Insert("Bridge", "b", Row{"name": name, "ports": Set[Named]{"p"}, "external_ids": ids}),
		Mutate("Open_vSwitch", []Mutation{Change("bridges", "insert", Named("b")), Change("next_cfg", "+=", 1)}))
	if rs[3].Count != 1 || rs[2].UUID == "" {
		t.Fatalf("got %+v", rs)
	}
	return rs[2].UUID
}

func bridges(t *testing.T, c *Client, where ...Condition) []bridge {
	t.Helper()
	found, err := Into[bridge](transact(t, c, Select("Bridge", bridgeColumns, where...))[0])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestLiveTransactions writes and reads a real database: values of each type, a refusal that
// changes nothing, and guards.
func TestLiveTransactions(t *testing.T) {
	nstest.RequireUserNS(t)
	c := dial(t, ovstest.New(t, nil))
	ids := Map{"vmnet": "vm=P2 nic=net0", "quoted": "\"\\\n\u00fc \x7f"}
	one := addBridge(t, c, "br-one", ids)
	two := addBridge(t, c, "br-two", nil)
	found := bridges(t, c, Is(one))
	if len(found) != 1 || found[0].Name != "br-one" || found[0].UUID != one || len(found[0].Ports) != 1 ||
		len(found[0].FailMode) != 0 || !maps.Equal(found[0].ExternalIDs, ids) || found[0].STP {
		t.Fatalf("got %+v", found)
	}
	if all := bridges(t, c); len(all) != 2 {
		t.Errorf("without a condition: %+v", all)
	}
	transact(t, c, Update("Bridge", Row{"fail_mode": "secure", "stp_enable": true}, Is(one)))
	found = bridges(t, c, Where("external_ids", "includes", Map{"vmnet": ids["vmnet"]}))
	if len(found) != 1 || !found[0].STP {
		t.Errorf("got %+v", found)
	}

	// A guard that does not hold keeps the rest of its transaction from being done.
	_, err := c.Transact(t.Context(), Await(0, "Bridge", Is(one), Where("name", "==", "br-two")),
		Mutate("Open_vSwitch", []Mutation{Change("bridges", "delete", one)}))
	var refused *Error
	if !errors.Is(err, ErrTimedOut) || !errors.As(err, &refused) || refused.Op != "wait" || len(bridges(t, c)) != 2 {
		t.Errorf("got %v", err)
	}
	// So does an operation, and a commit of which the sum is not possible: two bridges of one name.
	_, err = c.Transact(t.Context(), Mutate("Open_vSwitch", []Mutation{Change("bridges", "delete", one)}),
		Insert("Bridge", "b", Row{"no_such_column": 1}))
	if !errors.As(err, &refused) || refused.Op != "insert" || refused.Table != "Bridge" || len(bridges(t, c)) != 2 {
		t.Errorf("got %v", err)
	}
	_, err = c.Transact(t.Context(), Insert("Bridge", "b", Row{"name": "br-two"}),
		Mutate("Open_vSwitch", []Mutation{Change("bridges", "insert", Named("b"))}))
	if !errors.As(err, &refused) || refused.Op != "commit" || refused.Name != "constraint violation" {
		t.Errorf("got %v", err)
	}

	transact(t, c, AwaitNone(0, "Bridge", Where("name", "==", "br-three")),
		Mutate("Open_vSwitch", []Mutation{Change("bridges", "delete", Set[UUID]{one, two})}))
	if all := bridges(t, c); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
	if _, err := c.Transact(t.Context(), Mutate("NoSuchTable", nil)); !errors.As(err, &refused) {
		t.Errorf("got %v", err)
	}
}

// TestLiveAwait waits for a row that another client makes meanwhile.
func TestLiveAwait(t *testing.T) {
	nstest.RequireUserNS(t)
	o := ovstest.New(t, nil)
	c, other := dial(t, o), dial(t, o)
	done := make(chan error, 1)
	go func() {
		for {
			_, err := c.Transact(t.Context(), Await(time.Hour, "Bridge", Where("name", "==", "br-one")))
			if !errors.Is(err, ErrTimedOut) {
				done <- err
				return
			}
		}
	}()
	nstest.Eventually(t, within, "the client waits", func() bool {
		return nstest.Waiting("internal/ovsdb.(*stream).next") == 1
	})
	addBridge(t, other, "br-one", nil)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestLiveManyRows reads more rows than fit into one read of the socket.
func TestLiveManyRows(t *testing.T) {
	nstest.RequireUserNS(t)
	c := dial(t, ovstest.New(t, nil))
	var ops []Op
	var named Set[Named]
	for i := range 500 {
		name := fmt.Sprintf("b%d", i)
		ids := Map{"vmnet": fmt.Sprint("vm=P", i)}
		ops = append(ops, Insert("Bridge", name, Row{"name": name, "external_ids": ids}))
		named = append(named, Named(name))
	}
	transact(t, c, append(ops, Mutate("Open_vSwitch", []Mutation{Change("bridges", "insert", named)}))...)
	all := bridges(t, c)
	slices.SortFunc(all, func(a, b bridge) int { return len(a.Name) - len(b.Name) })
	if len(all) != 500 || all[0].ExternalIDs["vmnet"] == "" {
		t.Errorf("got %d", len(all))
	}
}

// TestLiveServerStandsStill: a request ends with its context, however long the server takes, and
// its Client with it.
func TestLiveServerStandsStill(t *testing.T) {
	nstest.RequireUserNS(t)
	o := ovstest.New(t, nil)
	c := dial(t, o)
	o.Pause()
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Transact(ctx, Select("Bridge", bridgeColumns))
		done <- err
	}()
	nstest.Eventually(t, within, "the request was sent", func() bool {
		return nstest.Waiting("internal/ovsdb.(*stream).next") == 1
	})
	why := errors.New("the user has lost patience")
	cancel(why)
	if err := <-done; !errors.Is(err, why) || !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	o.Resume()
	if _, err := c.Transact(t.Context(), Select("Bridge", bridgeColumns)); !errors.Is(err, why) {
		t.Errorf("the client goes on, though an answer may be under way: %v", err)
	}

	c = dial(t, o) // and if the context has no deadline
	c.limit = time.Millisecond
	o.Pause()
	_, err := c.Transact(t.Context(), Select("Bridge", bridgeColumns))
	if !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	o.Resume()
}

// TestLiveServerRestarts: a Client ends with the server, and a new one finds what was written.
func TestLiveServerRestarts(t *testing.T) {
	nstest.RequireUserNS(t)
	o := ovstest.New(t, nil)
	c := dial(t, o)
	addBridge(t, c, "br-one", nil)
	o.StopDatabase()
	if _, err := c.Transact(t.Context(), Select("Bridge", bridgeColumns)); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	if _, err := Dial(t.Context(), o.Socket(), "Open_vSwitch"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v", err)
	}
	o.StartDatabase()
	if found := bridges(t, dial(t, o)); len(found) != 1 {
		t.Errorf("got %+v", found)
	}
	for _, path := range []string{o.Socket() + "/x", o.Dir + "/none", o.Dir} {
		if _, err := Dial(t.Context(), path, "Open_vSwitch"); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
