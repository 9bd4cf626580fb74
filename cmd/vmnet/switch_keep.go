package main

import (
	"context"
	"errors"
	"fmt"

	"vmnet/bridge/vswitch/control/server"
	"vmnet/internal/sdnotify"
)

// begin gives the switch its ports: those of a process that was killed, if systemd has kept them,
// or those of the command line. The former were added from a command line once, and may have been
// changed or removed since.
func (a *app) begin(ctx context.Context, o *runVerb, s *server.Server) ([]openPort, error) {
	a.keep(o, s)
	if o.store != nil {
		if goes := a.goOn(o, s); goes {
			return nil, nil
		}
	}
	return a.plugIn(ctx, s, o)
}

// goOn goes on with stored ports, and reports whether there are any.
func (a *app) goOn(o *runVerb, s *server.Server) bool {
	files := sdnotify.Stored()
	if len(files) == 0 {
		return false
	}
	t, err := s.Kept(files)
	if err != nil {
		if !errors.Is(err, server.ErrNotKept) { // else it was killed while it opened its ports
			a.noteOf(o, fmt.Sprintf("begins with the ports of the command line: %v", err))
		}
		return false
	}
	defer t.Close()
	o.takenOver = true
	if err := t.Begin(); err != nil {
		a.noteOf(o, err.Error())
	}
	return true
}
