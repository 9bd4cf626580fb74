package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
)

// call is a request that the switch is handling. Its files are closed afterwards: a verb copies
// those that it keeps.
type call struct {
	control.Request
	files []*os.File
	// send sends a message before the last one, which has the error.
	send    func(control.Reply, ...*os.File) error
	session *session // may be nil in tests
}

// A verb handles one kind of request.
type verb struct {
	files func(*control.Request) (least, most int) // number of files that it takes; nil for none
	do    func(*Server, *call) error
}

func verbOf(name string) (verb, bool) {
	v, ok := map[string]verb{
		control.DoInfo:  {do: (*Server).sendInfo},
		control.DoPorts: {do: (*Server).sendPorts},
		control.DoAddPort: {do: (*Server).addPort, files: func(r *control.Request) (int, int) {
			return filesOf(r.Port)
		}},
		control.DoSetLabel:     {do: func(s *Server, c *call) error { return s.ports.label(c.Name, c.Label) }},
		control.DoSetPort:      {do: func(s *Server, c *call) error { return s.ports.set(c.Name, *c.Config) }},
		control.DoAnnounce:     {do: func(s *Server, c *call) error { return s.ports.announce(c.Name, c.Frames) }},
		control.DoRemovePort:   {do: func(s *Server, c *call) error { return s.ports.remove(c.Name) }},
		control.DoFDB:          {do: (*Server).sendFDB},
		control.DoFlush:        {do: func(s *Server, c *call) error { return s.ports.flush(c.Name) }},
		control.DoAddStatic:    {do: func(s *Server, c *call) error { return s.ports.addStatic(*c.Entry) }},
		control.DoRemoveStatic: {do: func(s *Server, c *call) error { return s.ports.removeStatic(*c.Entry) }},
		control.DoCapture:      {do: (*Server).capture, files: func(*control.Request) (int, int) { return 1, 1 }},
		control.DoStop:         {do: func(*Server, *call) error { return errStop }},
		control.DoHandOver:     {do: (*Server).handOver},
		control.DoTaken: {do: func(*Server, *call) error {
			return fmt.Errorf("%w request: nothing is handed over", brport.ErrInvalid)
		}},
	}[name]
	return v, ok
}

// parseRequest parses a request and checks that it has what its verb needs. Its errors match
// brport.ErrInvalid with errors.Is.
func parseRequest(b []byte) (*control.Request, error) {
	var r control.Request
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields() // an ignored setting would be worse than an error
	err := d.Decode(&r)
	if err == nil {
		if _, trailing := d.Token(); !errors.Is(trailing, io.EOF) {
			err = errors.New("unexpected text after the object")
		}
	}
	_, known := verbOf(r.Do)
	switch {
	case err != nil:
	case !known:
		err = fmt.Errorf("this switch does not know %q (it may be of another version)", r.Do)
	case r.Do == control.DoAddPort && r.Port == nil, r.Do == control.DoCapture && r.Capture == nil,
		r.Do == control.DoSetPort && r.Config == nil,
		(r.Do == control.DoAddStatic || r.Do == control.DoRemoveStatic) && r.Entry == nil:
		err = fmt.Errorf("%s without its argument", r.Do)
	}
	if err != nil {
		return nil, fmt.Errorf("%w request: %w", brport.ErrInvalid, err)
	}
	return &r, nil
}

// errStop makes the server reply before it stops the switch. It is not a failure.
var errStop = errors.New("stop")

// perform handles the request in a session's message.
func (s *Server) perform(c *session, b []byte, files []*os.File) error {
	return s.performFor(&call{files: files, session: c, send: func(a control.Reply, files ...*os.File) error {
		a.More = true
		return c.send(a, files...)
	}}, b)
}

func (s *Server) performFor(c *call, b []byte) error {
	r, err := parseRequest(b)
	if err != nil {
		return err
	}
	v, _ := verbOf(r.Do)
	least, most := 0, 0
	if v.files != nil {
		least, most = v.files(r)
	}
	if n := len(c.files); n < least || n > most {
		return fmt.Errorf("%w request: %d files: want %d to %d", brport.ErrInvalid, n, least, most)
	}
	c.Request = *r
	err = v.do(s, c)
	s.ports.await(storePatience(r.Do))
	return err
}

// storePatience returns how long a client waits for the store after a request, at most. Normally it
// takes a millisecond, and what the reply says is then kept.
func storePatience(do string) time.Duration {
	switch do {
	case control.DoAddPort, control.DoSetLabel, control.DoSetPort, control.DoAddStatic, control.DoRemoveStatic:
		return 100 * time.Millisecond
	case control.DoRemovePort: // its files may hold a device
		return forgetPatience
	}
	return 0
}

func (s *Server) capture(c *call) error { return s.ports.sw.Capture(c.files[0], *c.Capture) }

func (s *Server) addPort(c *call) error { return s.ports.add(*c.Port, c.files) }

func (s *Server) sendInfo(c *call) error {
	info := s.Info()
	return c.send(control.Reply{Info: &info})
}

// Info returns the state of the switch as a whole.
func (s *Server) Info() control.Info {
	info := s.info
	info.UID = os.Geteuid()
	info.FDB = control.FDBStats(s.ports.sw.FDB().Stats())
	ports := s.ports.sw.Ports()
	info.Ports = len(ports)
	for _, p := range ports {
		if p.State() != vport.StateUp {
			info.Down++
		}
	}
	info.GuestMTU = s.ports.sw.GuestMTU()
	info.VLANFiltering = s.ports.sw.FiltersVLANs()
	return info
}

func (s *Server) sendPorts(c *call) error {
	return inChunks(s.ports.list(), func(some []control.Port) error { return c.send(control.Reply{Ports: some}) })
}

func (s *Server) sendFDB(c *call) error {
	return inChunks(s.ports.fdb(), func(some []control.FDBEntry) error { return c.send(control.Reply{FDB: some}) })
}

// chunk limits the part of a list in one message, in bytes. The message has a few more.
const chunk = control.MaxMessage - 1024

// inChunks calls send with as many items at a time as fit into a message.
func inChunks[T any](items []T, send func([]T) error) error {
	first, size := 0, 0
	for i := range items {
		b, err := json.Marshal(items[i])
		if err != nil {
			return err
		}
		if size+len(b)+1 > chunk && i > first {
			if err := send(items[first:i]); err != nil {
				return err
			}
			first, size = i, 0
		}
		size += len(b) + 1
	}
	if first == len(items) {
		return nil
	}
	return send(items[first:])
}
