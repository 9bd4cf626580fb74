package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"vmnet/bridge/vswitch/control/server"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/sdnotify"
)

// begin gives the switch its ports: those of a process that was killed, if systemd has kept them,
// or those of the command line. The former were added from a command line once, and may have been
// changed or removed since.
func (a *app) begin(ctx context.Context, o *runVerb, s *server.Server) ([]openPort, error) {
	if o.store != nil {
		if goes, err := a.goOn(o, s); goes || err != nil {
			return nil, err
		}
	}
	a.keep(o, s, false)
	return a.plugIn(ctx, s, o)
}

// goOn goes on with stored ports, and reports whether there are any.
func (a *app) goOn(o *runVerb, s *server.Server) (goes bool, err error) {
	files := sdnotify.Stored()
	if len(files) == 0 {
		return false, nil
	}
	defer fdpass.CloseAll(slices.Collect(maps.Values(files)))
	a.keep(o, s, true)
	t, err := s.Kept(files)
	if err != nil {
		if !errors.Is(err, server.ErrNotKept) { // else it was killed while it opened its ports
			a.noteOf(o, fmt.Sprintf("begins with the ports of the command line: %v", err))
		}
		return false, o.store.Forget(slices.Collect(maps.Keys(files))...)
	}
	defer t.Close()
	o.takenOver = true
	if err := t.Begin(); err != nil {
		a.noteOf(o, err.Error())
	}
	return true, nil
}
