package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/capture"
	"vmnet/internal/framefilter"
	"vmnet/internal/kernel/sniff"
	"vmnet/tapmgr"
)

func (a *app) captureCommand() *cobra.Command {
	o := captureVerb{direction: "both"}
	cmd := &cobra.Command{
		Use:   "capture VM/NIC [FILTER...]",
		Short: "Show the frames of a NIC, or write them to a file",
		Long: `Show the frames that a guest sends and receives by a NIC, a line each, or write them to a
pcapng file for Wireshark, until Ctrl-C. The NIC may be of any kind, also one that libvirt has made:
the frames are captured at its tap, at its macvtap or ipvtap in the namespace that this is in, or by
its userspace switch. A guest's only NIC need not be named. Frames are captured as they
pass: super-frames in one piece, and without checksums that are left to the receiver. In is what comes from the guest.

With --drops: the frames that are dropped, with the reason. At a tap, macvtap or ipvtap these are
what --port-security drops of the guest's frames, and what --allow-in drops of those for it. The
kernel copies the first 256 bytes of each, only while somebody captures; frames that pass cost
nothing more. Frames for which its buffer of 1 MiB has no room are lost and counted. At most four
such captures of one NIC run at a time. They take root of the host.

FILTER is a part of pcap-filter(7): arp, ip, ip6, icmp, icmp6, tcp, udp, sctp, dhcp, dns, broadcast,
multicast, vlan [ID], [src|dst] host ADDRESS, [src|dst] net CIDR, [src|dst] port NUMBER and
ether [src|dst] host MAC, joined by and, or, not and parentheses.`,
		Example: `  vmnet capture P2/net0
  vmnet capture P2/net0 dhcp or arp
  vmnet capture P2/net0 --drops
  vmnet capture P2/net0 -w net0.pcapng --duration 10s
  vmnet capture P2/net0 -w - not port 22 | wireshark -k -i -`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return oneArg("the name of a NIC, such as P2/net0")(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: a.nicsAndFilters,
	}
	captureFlags(cmd, &o)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if err := o.take(strings.Join(args[1:], " "), *format == "json"); err != nil {
			return err
		}
		if err := a.checkCapture(&o); err != nil {
			return err
		}
		return a.captureNIC(cmd.Context(), args[0], &o)
	})
	return cmd
}

// take takes what is not a value of a flag.
func (o *captureVerb) take(filter string, json bool) error {
	f, err := framefilter.Parse(filter)
	if err != nil {
		return usageError{err}
	}
	if strings.TrimSpace(filter) != "" {
		o.keep = f.Match
	}
	o.json = json
	o.cfg.In, o.cfg.Out = o.direction == "in", o.direction == "out"
	return nil
}

// nicsAndFilters completes VM/NIC, and then the words of a filter.
func (a *app) nicsAndFilters(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion,
	cobra.ShellCompDirective,
) {
	if len(args) > 0 {
		return framefilter.Words, noFiles
	}
	var names []cobra.Completion
	for _, n := range a.nics(cmd.Context(), "") {
		names = append(names, cobra.CompletionWithDesc(n.VM+"/"+n.ID, n.Interface+" on "+n.Source))
	}
	return names, noFiles
}

func (a *app) captureNIC(ctx context.Context, name string, o *captureVerb) error {
	vm, id, _ := strings.Cut(name, "/")
	var place tapmgr.CapturePlace
	err := a.withManager(func(m *tapmgr.Manager) (err error) {
		place, err = m.OpenCapture(ctx, vm, id)
		return err
	})
	if err != nil {
		return err
	}
	if place.Switch != "" {
		o.name, o.cfg.Ports = place.Switch, []string{place.Port}
		if o.keep != nil && o.cfg.Snaplen > 0 {
			o.cfg.Snaplen = max(o.cfg.Snaplen, framefilter.HeaderBytes)
		}
		return a.capture(ctx, o)
	}
	defer place.Socket.Close()
	if o.cfg.Drops {
		return a.captureDrops(ctx, place.NIC.VM, place.NIC.ID, o)
	}
	o.place, o.cfg.Ports = place.NIC.Type+" "+place.NIC.Interface, []string{place.NIC.Interface}
	r, err := sniff.NewReader(place.Socket)
	if err != nil {
		return err
	}
	ctx, cancel := o.bound(ctx)
	defer cancel()
	return a.writeCapture(o, func(sink frameSink) (int, []capture.Totals, error) {
		return sniffed(ctx, r, sink, o, place.Reversed)
	})
}

// errGone ends a capture at a device that is deleted, as the end of its guest does.
var errGone = errors.New("the capture has ended: the NIC's device has gone")

// sniffed writes the frames of a socket until o's count is reached, ctx ends or the NIC's device
// has gone.
func sniffed(ctx context.Context, r *sniff.Reader, sink frameSink, o *captureVerb, reversed bool) (
	n int, totals []capture.Totals, err error,
) {
	seen := [2]uint64{}
	defer func() {
		for _, d := range []capture.Direction{capture.In, capture.Out} {
			if d == capture.In && !o.cfg.Out || d == capture.Out && !o.cfg.In {
				totals = append(totals, capture.Totals{Direction: d, Seen: seen[d]})
			}
		}
		totals[0].Lost = r.Dropped() // of both directions
		totals[0].Seen += totals[0].Lost
	}()
	var flush time.Time // when next
	for ctx.Err() == nil && (o.count == 0 || n < o.count) {
		if now := time.Now(); !now.Before(flush) {
			flush = now.Add(flushEvery)
			if err := errors.Join(sink.Flush(), r.SetDeadline(flush)); err != nil {
				return n, nil, err
			}
			if r.Gone() {
				return n, nil, errGone
			}
		}
		f, err := r.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return n, nil, err
		}
		c := capture.Frame{Time: f.Time, Direction: capture.In, Length: f.Length, Data: f.Data}
		if f.Sent != reversed {
			c.Direction = capture.Out
		}
		if c.Direction == capture.Out && o.cfg.In || c.Direction == capture.In && o.cfg.Out ||
			o.keep != nil && !o.keep(c.Data) {
			continue
		}
		seen[c.Direction]++
		if o.cfg.Snaplen > 0 {
			c.Data = c.Data[:min(o.cfg.Snaplen, len(c.Data))]
		}
		if err := sink.Write(c); err != nil {
			return n, nil, err
		}
		n++
	}
	return n, nil, nil
}
