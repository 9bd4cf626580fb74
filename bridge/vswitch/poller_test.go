package vswitch

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"vmnet/bridge/portrate"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// pollingLAN returns a LAN whose switch polls for that long, on a CPU or in the guests' goroutines.
func pollingLAN(t *testing.T, d time.Duration, onCPU bool) *lan {
	t.Helper()
	l := newLAN(t, nil)
	_ = l.sw.Close()
	cfg := Config{Poll: d}
	if onCPU {
		cpus, err := UsableCPUs()
		if err != nil {
			t.Fatal(err)
		}
		cfg.PollCPUs = cpus[len(cpus)-1:]
	}
	l.sw = New(cfg)
	return l
}

var pollings = map[string]struct {
	onCPU   bool
	without uint64
}{
	"goroutine, event index": {false, 0}, "goroutine, flags": {false, frontend.EventIndex},
	"CPU, event index": {true, 0}, "CPU, flags": {true, frontend.EventIndex},
}

// TestPoll: frames pass without kicks once one has come, from several guests. Ports can be removed
// meanwhile.
func TestPoll(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8)) // as vmnet switch run does
	for name, tt := range pollings {
		l := pollingLAN(t, time.Hour, tt.onCPU)
		var guests []driven
		for _, port := range []string{"a", "b", "c"} {
			guests = append(guests, l.guest(port, vport.Config{}, frontend.Config{Without: tt.without}))
		}
		for round := range 3 {
			for i, d := range guests {
				d.sends(etherFrame(all, mac(byte(i)), nil, 60+round))
				d.Pair[0].Mute = true
				for j, other := range guests {
					if j != i {
						got := other.gets()
						if len(got) != 1 || !bytes.Equal(got[0], etherFrame(all, mac(byte(i)), nil, 60+round)) {
							t.Errorf("%s, round %d: guest %d gets %x of guest %d", name, round, j, got, i)
						}
					}
				}
			}
		}
		if guests[0].Pair[0].WantsKick() {
			t.Errorf("%s: a guest that is polled is asked for kicks", name)
		}
		if err := l.sw.RemovePort("b"); err != nil {
			t.Error(err)
		}
		guests[0].sends(etherFrame(all, mac(0), nil, 60))
	}
}

// TestPollEnds: a guest that sends nothing for the time is asked for kicks, again and again.
func TestPollEnds(t *testing.T) {
	for name, tt := range pollings {
		l := pollingLAN(t, time.Millisecond, tt.onCPU)
		d := l.guest("a", vport.Config{}, frontend.Config{Without: tt.without})
		l.guest("b", vport.Config{}, frontend.Config{})
		for range 20 {
			d.sends(etherFrame(all, mac(1), nil, 60))
			nstest.Eventually(t, soon, name+": the guest is asked for kicks", d.Pair[0].WantsKick)
		}
	}
}

// TestPollLeavesLimitedPorts: a port that must wait at times does so alone, also one whose limit is
// set while it is polled.
func TestPollLeavesLimitedPorts(t *testing.T) {
	for name, tt := range pollings {
		l := pollingLAN(t, time.Hour, tt.onCPU)
		d := l.guest("a", vport.Config{}, frontend.Config{Without: tt.without})
		l.guest("b", vport.Config{}, frontend.Config{})
		d.sends(etherFrame(all, mac(1), nil, 60))
		d.Pair[0].Mute = true
		limit, err := portrate.ParseLimit("1M")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.sw.SetPort("a", vport.Config{Rates: portrate.Config{Up: limit}}); err != nil {
			t.Fatal(err)
		}
		d.sends(etherFrame(all, mac(1), nil, 60)) // which is still polled for
		d.Pair[0].Mute = false
		for range 3 {
			d.sends(etherFrame(all, mac(1), nil, 60))
			nstest.Eventually(t, soon, name+": the guest is asked for kicks", d.Pair[0].WantsKick)
		}
	}
}

// TestPollHostile: a guest whose memory goes away, or that writes nonsense, loses only its own
// session, although a thread polls it together with others.
func TestPollHostile(t *testing.T) {
	l := pollingLAN(t, time.Hour, true)
	a, b := l.guest("a", vport.Config{}, frontend.Config{}), l.guest("b", vport.Config{}, frontend.Config{})
	a.sends(etherFrame(all, mac(1), nil, 60))
	b.gets()
	a.Pair[0].Mute = true
	for name, harm := range map[string]func(d driven){
		"memory": func(d driven) {
			if err := d.Shrink(); err != nil {
				t.Error(err)
			}
		},
		"ring": func(d driven) { d.Pair[0].Corrupt(40000) },
	} {
		d := l.guest("hostile", vport.Config{}, frontend.Config{})
		d.sends(etherFrame(all, mac(3), nil, 60))
		harm(d)
		await(t, d.Port, vport.StateDown)
		b.gets()
		a.sends(etherFrame(all, mac(1), nil, 61))
		if got := b.gets(); len(got) != 1 || !bytes.Equal(got[0], etherFrame(all, mac(1), nil, 61)) {
			t.Errorf("%s: after it, another guest gets %x", name, got)
		}
		if err := l.sw.RemovePort("hostile"); err != nil {
			t.Error(err)
		}
	}
}
