package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/pcapng"
	"vmnet/internal/cli/console"
	"vmnet/internal/cli/nicflags"
)

// captureVerb is the command line of switch capture.
type captureVerb struct {
	name      string
	cfg       capture.Config
	direction string
	file      string // "" for lines of text, "-" for stdout
	count     int
	duration  time.Duration
	json      bool
	keep      func(frame []byte) bool // nil for all frames
	place     string                  // what the frames are captured at; empty for the switch
}

// lineSnaplen is enough of a frame, in bytes, for its line of text.
const lineSnaplen = 256

func (a *app) switchCaptureCommand() *cobra.Command {
	o := captureVerb{direction: "both"}
	cmd := &cobra.Command{
		Use:   "capture NAME",
		Short: "Show the frames that pass a switch, or write them to a file",
		Long: `Show the frames that pass the ports of a switch, a line each, or write them to a
pcapng file for Wireshark, until Ctrl-C. Frames are captured as they pass the port: super-frames in
one piece, and without checksums that are left to the receiver. The switch never waits for a
capture: frames for which there is no room are lost and counted.`,
		Example: `  vmnet switch capture sw0 --port tap0
  vmnet switch capture sw0 --drops
  vmnet switch capture sw0 --port tap0 -w tap0.pcapng --duration 10s
  vmnet switch capture sw0 --port tap0 -w - | wireshark -k -i -`,
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	cmd.Flags().StringArrayVar(&o.cfg.Ports, "port", nil,
		"only this `PORT` (repeatable; default all that the switch has now)")
	captureFlags(cmd, &o)
	complete(cmd, "port", switchPorts)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.name, o.json = args[0], *format == "json"
		o.cfg.In, o.cfg.Out = o.direction == "in", o.direction == "out"
		if err := a.checkCapture(&o); err != nil {
			return err
		}
		return a.capture(cmd.Context(), &o)
	})
	return cmd
}

// captureFlags adds the flags that say which frames are captured, and where they go.
func captureFlags(cmd *cobra.Command, o *captureVerb) {
	f := cmd.Flags()
	f.StringVarP(&o.file, "write", "w", "", "write pcapng to a new `FILE`; - is stdout")
	nicflags.Number(f, &o.cfg.Snaplen, "snaplen", "BYTES",
		"only the first BYTES of each frame (default all; 256 without -w)")
	nicflags.Number(f, &o.count, "count", "N", "end after N frames (default never)")
	durationFlag(f, &o.duration, "duration", 0, 100*time.Millisecond, "end after this time")
	f.Lookup("duration").DefValue = ""
	choice(cmd, f, &o.direction, "direction", "", "frames that come in by the port, leave by it, or both", "in", "out",
		"both")
	f.BoolVar(&o.cfg.Drops, "drops", false, "only frames that are dropped, with the reason")
}

func (a *app) checkCapture(o *captureVerb) error {
	switch {
	case o.count < 0 || o.cfg.Snaplen < 0:
		return usagef("--count %d and --snaplen %d: want 0 or more", o.count, o.cfg.Snaplen)
	case o.json && o.file != "":
		return usagef("-o json and -w exclude each other: -o is for lines on stdout")
	case o.file == "-" && isTerminal(a.out):
		return usagef("-w -: stdout is a terminal (pipe it into a program such as wireshark -k -i -)")
	case o.file == "" && o.cfg.Snaplen == 0:
		o.cfg.Snaplen = lineSnaplen
	}
	if len(o.cfg.Ports) == 0 {
		return nil
	}
	return o.cfg.Validate()
}

// A frameSink takes captured frames.
type frameSink interface {
	Write(capture.Frame) error
	Flush() error
	Finish([]capture.Totals) error // with a last flush
}

func (a *app) capture(ctx context.Context, o *captureVerb) error {
	ctx, cancel := o.bound(ctx)
	defer cancel()
	var r *capture.Reader
	err := withSwitch(ctx, o.name, func(ctx context.Context, c *control.Client) (err error) {
		if len(o.cfg.Ports) == 0 {
			ports, err := c.Ports(ctx)
			if err != nil {
				return err
			}
			for _, p := range ports {
				o.cfg.Ports = append(o.cfg.Ports, p.Name)
			}
			if len(ports) == 0 {
				return fmt.Errorf("switch %s has no port", o.name)
			}
		}
		r, err = c.Capture(ctx, o.cfg)
		return err
	})
	if err != nil {
		return err
	}
	defer r.Close()
	return a.writeCapture(o, func(sink frameSink) (int, []capture.Totals, error) {
		n, err := follow(ctx, r, &ordered{sink: sink, wanted: o.count, keep: o.keep})
		return n, r.Totals(), err
	})
}

// bound ends ctx after the duration that was asked for.
func (o *captureVerb) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.duration > 0 {
		return context.WithTimeout(ctx, o.duration)
	}
	return context.WithCancel(ctx)
}

// writeCapture has frames written to where they should go, and says how many there were.
func (a *app) writeCapture(o *captureVerb, frames func(frameSink) (int, []capture.Totals, error)) error {
	sink, done, err := a.captureSink(o)
	if err != nil {
		return err
	}
	n, totals, err := frames(sink)
	finished := sink.Finish(totals)
	if o.file == "-" {
		finished = outputError(finished)
	}
	if err == nil { // otherwise finished repeats err
		err = finished
	}
	err = errors.Join(err, done())
	a.say(captureCounts(n, totals))
	return err
}

// captureSink returns the sink for the frames, and a function to call after the last one.
func (a *app) captureSink(o *captureVerb) (frameSink, func() error, error) {
	nothing := func() error { return nil }
	var out io.Writer = a.out
	switch o.file {
	case "":
		return &lines{w: bufio.NewWriter(a.out), ports: o.cfg.Ports, json: o.json}, nothing, nil
	case "-":
	default:
		// O_EXCL: no existing file is overwritten, and no symbolic link is followed.
		f, err := os.OpenFile(o.file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return nil, nil, fmt.Errorf("%w (remove it, or name another file)", err)
		}
		if err != nil {
			return nil, nil, err
		}
		out, nothing = f, f.Close
	}
	sink, err := pcapng.NewFile(out, versionText(), cmp.Or(o.place, "switch "+o.name), o.cfg)
	if err != nil {
		return nil, nil, errors.Join(err, nothing())
	}
	return sink, nothing, nil
}

const (
	flushEvery = 200 * time.Millisecond
	endWithin  = 3 * time.Second // how long to wait for the switch to end the capture
)

// follow writes frames until w has enough, ctx ends or the capture ends. It returns the number of
// frames written, and an error if the capture ended by itself.
func follow(ctx context.Context, r *capture.Reader, w *ordered) (n int, err error) {
	defer context.AfterFunc(ctx, func() { _ = r.Stop() })()
	var leave time.Time
	for {
		now := time.Now()
		_ = r.SetDeadline(now.Add(pcapng.Patience))
		f, err := r.Next()
		switch {
		case err == nil:
			w.order.Push(f)
		case err == io.EOF && ctx.Err() == nil:
			return w.n,
				errors.Join(w.write(w.order.Rest),
					errors.New("the switch ended the capture: it was stopped, or the ports were removed"))
		case err == io.EOF, !leave.IsZero() && now.After(leave):
			return w.n, w.write(w.order.Rest)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return w.n, err
		}
		if err := w.due(now); err != nil || w.enough() {
			return w.n, err
		}
		if ctx.Err() != nil && leave.IsZero() {
			leave = now.Add(endWithin)
		}
	}
}

// ordered writes frames to a sink in the order of their times.
type ordered struct {
	sink    frameSink
	order   pcapng.Order
	n       int                     // frames written
	wanted  int                     // 0 for any number
	keep    func(frame []byte) bool // nil for all frames
	flushed time.Time
}

func (w *ordered) enough() bool { return w.wanted > 0 && w.n >= w.wanted }

// due writes the frames that are due at now.
func (w *ordered) due(now time.Time) error {
	if err := w.write(func() (capture.Frame, bool) { return w.order.Pop(now) }); err != nil {
		return err
	}
	if now.Sub(w.flushed) < flushEvery {
		return nil
	}
	w.flushed = now
	return w.sink.Flush()
}

func (w *ordered) write(next func() (capture.Frame, bool)) error {
	for !w.enough() {
		f, ok := next()
		if !ok {
			break
		}
		if w.keep != nil && !w.keep(f.Data) {
			continue
		}
		if err := w.sink.Write(f); err != nil {
			return err
		}
		w.n++
	}
	return nil
}

// captureCounts returns the last line, which goes to stderr.
func captureCounts(n int, totals []capture.Totals) string {
	var lost uint64
	for _, t := range totals {
		lost += t.Lost
	}
	text := fmt.Sprintf("%s captured, %d lost", count(n, "frame"), lost)
	if lost > 0 {
		text += " (to lose less: a smaller --snaplen, fewer ports, or a larger net.core.wmem_max)"
	}
	return text
}

// lines writes frames as lines of text or JSON.
type lines struct {
	w     *bufio.Writer
	ports []string
	json  bool
}

// capturedLine is a captured frame in JSON.
type capturedLine struct {
	Time      time.Time `json:"time"`
	Port      string    `json:"port"`
	Direction string    `json:"direction"`
	Queue     int       `json:"queue"`
	Length    int       `json:"length"` // bytes of the Ethernet frame
	Summary   string    `json:"summary"`
	Dropped   string    `json:"dropped,omitempty"` // the reason
}

func (l *lines) Write(f capture.Frame) error {
	if f.Port >= len(l.ports) {
		return fmt.Errorf("a frame of port %d of %d", f.Port, len(l.ports))
	}
	line := capturedLine{f.Time, l.ports[f.Port], f.Direction.String(), f.Queue, f.Length, pcapng.Summary(f), f.Reason}
	if l.json {
		b, err := json.Marshal(line)
		if err == nil {
			_, err = l.w.Write(append(b, '\n'))
		}
		return outputError(err)
	}
	text := fmt.Sprintf("%s %s %-3s %s", line.Time.Format("15:04:05.000000"), line.Port, line.Direction, line.Summary)
	_, err := l.w.WriteString(console.Clean(text) + "\n")
	return outputError(err)
}

func (l *lines) Flush() error                  { return outputError(l.w.Flush()) }
func (l *lines) Finish([]capture.Totals) error { return l.Flush() }
