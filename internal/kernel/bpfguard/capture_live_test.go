package bpfguard

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"slices"
	"testing"
	"time"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/testvm/lab"
)

func TestLiveCapture(t *testing.T) { captureAtDevices(t) }

func TestLabCapture(t *testing.T) {
	lab.Inside(t)
	captureAtDevices(t)
}

func (p *port) capture() *Capture {
	p.t.Helper()
	k, err := OpenCapture(p.c, p.link)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = k.Close() })
	return k
}

// gets demands that a capture has the frame that send sends. The host sends others by itself.
func (p *port) gets(k *Capture, send func([]byte), frame []byte, reason string) {
	p.t.Helper()
	for end := time.Now().Add(within); ; {
		send(frame)
		for k.SetDeadline(time.Now().Add(keepEvery)); ; {
			d, err := k.Next()
			if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end) {
				break // it may have been sent before the capture had its place
			}
			if err != nil {
				p.t.Fatalf("%x, %s: %v", frame, reason, err)
			}
			if !bytes.HasPrefix(d.Data, frame[:14]) || d.Length != len(frame) {
				continue
			}
			if !bytes.Equal(d.Data, frame[:min(len(frame), 256)]) || d.Reason != reason ||
				d.FromGuest != (reason != inbound.Refused) || time.Since(d.Time).Abs() > within {
				p.t.Errorf("captured %+v, want %x, %s", d, frame, reason)
			}
			return
		}
	}
}

// captureAtDevices captures what is dropped at a tap and at a macvtap, by several at once, while
// programs are replaced, and at a rate that nobody reads.
func captureAtDevices(t *testing.T) {
	for name, device := range map[string]func(*testing.T) *port{"tap": newTap, "macvtap": newMacvtap} {
		t.Run(name, func(t *testing.T) {
			p := device(t)
			if _, err := OpenCapture(p.c, p.link); !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			p.attach(portsectest.Config())
			p.allowIn(inboundOf(t, "tcp:22"))
			spoof := ether(0x0800, packet(guest4, remote4, udp, udpDatagram(1, 2)))
			long := append(slices.Clone(spoof), make([]byte, 1000)...)
			syn := to(tcp, tcpSegment(40000, 23, syn))
			one, two := p.capture(), p.capture()
			for _, k := range []*Capture{one, two} {
				for _, capture := range []*Capture{one, two} {
					p.gets(capture, p.send, spoof, portsec.SourceMAC.String()) // from another's address
					p.gets(capture, p.sendFar, syn, inbound.Refused)
				}
				cfg := portsectest.Config() // a change replaces the programs
				if k == one {
					cfg.Checks = portsec.MAC
				}
				p.attach(cfg)
				p.allowIn(inboundOf(t, "tcp:22 icmp"))
			}
			if err := one.Close(); err != nil {
				t.Fatal(err)
			}
			one.places, one.reader, one.frames, one.lost = nil, nil, nil, nil
			p.gets(two, p.send, long, portsec.SourceMAC.String())
			for range 3 {
				p.capture()
			}
			if _, err := OpenCapture(p.c, p.link); err == nil {
				t.Error("a fifth capture")
			}
			before := p.read().Drops[portsec.SourceMAC]
			const many = 5000
			for range many {
				p.send(spoof)
			}
			if n := p.read().Drops[portsec.SourceMAC] - before; n != many {
				t.Errorf("%d frames were dropped, want %d", n, many)
			}
			got := 0
			for two.SetDeadline(time.Now()); ; got++ {
				_, err := two.Next()
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if lost, err := two.Lost(); err != nil || got == 0 || lost == 0 || got+int(lost) < many {
				t.Errorf("%d frames were captured, %d lost, %v; want %d in all at least", got, lost, err, many)
			}
		})
	}
}
