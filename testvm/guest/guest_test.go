package guest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/testvm/agent"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestRun(t *testing.T) {
	out, err := run(t.Context(), agent.Command{Argv: []string{"sh", "-c", "cat; echo no >&2; exit 3"}, Stdin: "yes"})
	if want := (agent.Output{Stdout: "yes", Stderr: "no\n", Code: 3}); out != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", out, err, want)
	}
	out, err = run(t.Context(), agent.Command{Argv: []string{"sh", "-c", "kill -9 $$"}})
	if out.Code != -1 || err != nil {
		t.Errorf("killed: %+v, %v", out, err)
	}
	out, err = run(t.Context(), agent.Command{Argv: []string{"head", "-c", "5000000", "/dev/zero"}})
	if len(out.Stdout) != agent.MaxOutput || out.Code != 0 || err != nil {
		t.Errorf("%d bytes of output, %v", len(out.Stdout), err)
	}
	for _, argv := range [][]string{nil, {"no-such-program"}, {"/"}} {
		if _, err := run(t.Context(), agent.Command{Argv: argv}); err == nil {
			t.Errorf("%q ran", argv)
		}
	}
}

func TestRunKillsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := run(ctx, agent.Command{Argv: []string{"sh", "-c", "sleep 30 & sleep 30"}})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("got %v after %s", err, time.Since(start))
	}
}

func TestLiveLinks(t *testing.T) {
	ns := nstest.New(t)
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "a", MTU: 1400, NumTxQueues: 2, NumRxQueues: 1},
		PeerName:  "b",
	}
	if err := nstest.Handle(t, ns).LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	check := func(what string, err error, want string) {
		t.Helper()
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	err := ns.Do(func() error {
		ctx := t.Context()
		check("up", errors.Join(setLink(agent.LinkSet{Link: "a", Up: new(true)}),
			setLink(agent.LinkSet{Link: "b", Up: new(true)})), "")
		check("MTU and MAC", setLink(agent.LinkSet{Link: "a", MTU: 1300, MAC: "02:00:00:00:00:0a"}), "")
		check("bad MAC", setLink(agent.LinkSet{Link: "a", MAC: "x"}), "change link a: address x")
		for _, addr := range []string{"10.1.0.1/24", "fd01::1/64"} {
			_, err := changeAddr(ctx, agent.AddrChange{Link: "a", Addr: addr})
			check("add "+addr, err, "")
		}
		_, err := changeAddr(ctx, agent.AddrChange{Link: "a", Addr: "10.1.0.1/24", Remove: true})
		check("remove", err, "")
		for want, r := range map[string]agent.Route{
			"":                           {To: "default", Via: "fd01::2"},
			"route needs a gateway":      {To: "default"},
			`gateway "x" is not an addr`: {To: "default", Via: "x"},
			"invalid CIDR address: x":    {To: "x", Link: "a"},
			"link c: Link not found":     {To: "default", Link: "c"},
			"route to 10.8.0.0/16":       {To: "10.8.0.0/16", Via: "10.7.0.1"},
		} {
			_, err := addRoute(ctx, r)
			check("route", err, want)
		}
		got, err := waitNIC(ctx, agent.NICWait{MAC: "02:00:00:00:00:0A"})
		check("wait", err, "")
		if got.Name != "a" || got.MTU != 1300 || !got.Up || !got.Carrier ||
			!strings.Contains(strings.Join(got.Addrs, " "), "fd01::1/64") ||
			strings.Contains(strings.Join(got.Addrs, " "), "10.1.0.1") {
			t.Errorf("got %+v", got)
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err = waitNIC(short, agent.NICWait{MAC: got.MAC, Gone: true})
		check("wait for its end", err, "NIC 02:00:00:00:00:0a: context deadline exceeded")
		_, err = waitNIC(ctx, agent.NICWait{MAC: "02:00:00:00:00:0b", Gone: true})
		check("wait for the end of what is not there", err, "")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestServices(t *testing.T) {
	serve := handlers()[agent.MethodServe]
	stop := handlers()[agent.MethodUnserve]
	if _, err := serve(t.Context(), []byte(`{"proto":"sctp","addr":"127.0.0.1:0"}`), nil); err == nil ||
		!strings.Contains(err.Error(), "unknown protocol") {
		t.Errorf("sctp: %v", err)
	}
	if _, err := stop(t.Context(), []byte(`{"proto":"tcp","addr":"127.0.0.1:1"}`), nil); err == nil ||
		!strings.Contains(err.Error(), "nothing serves") {
		t.Errorf("stop what does not run: %v", err)
	}
}
