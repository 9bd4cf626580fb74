package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/network/config"
)

// socketName is the name of the socket on which a supervisor listens, beside its switch's.
const socketName = "network"

// What a client can want.
const (
	doState = "state"
	doMake  = "make"
	doStop  = "stop"
)

// request is what a client sends, once in a connection.
type request struct {
	Do   string `json:"do"`
	Text string `json:"text,omitempty"` // of the network's file, for make
}

// reply is the answer.
type reply struct {
	Error string  `json:"error,omitempty"`
	State *Status `json:"state,omitempty"`
}

// Status is how a network that runs stands.
type Status struct {
	Text       string `json:"-"`          // of the file as which it was made
	Supervisor int    `json:"supervisor"` // ids of its processes; 0 for one that does not run
	Agent      int    `json:"agent"`
	Pasta      int    `json:"pasta"`
	Dnsmasq    int    `json:"dnsmasq"`
	Socket     string `json:"socket"` // of its switch
	Way        string `json:"way"`    // by which IP versions guests reach the world
	WayFailure string `json:"way_failure,omitempty"`
	Rules      bool   `json:"rules"`    // they are as they were made
	Serving    bool   `json:"serving"`  // guests are answered, or should not be
	Restarts   int    `json:"restarts"` // of pasta and dnsmasq
	Failure    string `json:"failure,omitempty"`
	// Reserved are the addresses that guests were attached with, as the server knows them.
	Reserved []string `json:"reserved,omitempty"`
}

// wire is a Status with all its fields, for the socket.
type wire struct {
	reply
	Text string `json:"text,omitempty"`
}

// Limits of a client.
const (
	maxRequest = 128 << 10       // bytes
	maxClients = 16              // at a time
	talkTime   = 2 * time.Second // for a message
)

// door is where clients ask a supervisor.
type door struct {
	ln      *net.UnixListener
	path    string
	clients sync.WaitGroup
}

// listen makes the socket, which only this user may connect to. The caller has the directory to
// itself: the switch listens there.
func listen(path string) (*door, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close(), os.Remove(path))
	}
	return &door{ln: ln, path: path}, nil
}

// stop ends serve.
func (d *door) stop() { _ = d.ln.SetDeadline(time.Unix(1, 0)) }

func (d *door) close() error {
	d.clients.Wait()
	err := os.Remove(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, d.ln.Close())
}

// serve answers clients until stop. Their requests end with ctx. end is called for one that wants
// the network to end.
func (d *door) serve(ctx context.Context, s *supervisor, end func()) error {
	places := make(chan struct{}, maxClients)
	for {
		conn, err := d.ln.AcceptUnix()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil { // no fd is left
			time.Sleep(10 * time.Millisecond)
			continue
		}
		places <- struct{}{}
		d.clients.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			talk(ctx, s, conn, end)
		})
	}
}

// talk answers one client.
func talk(ctx context.Context, s *supervisor, conn *net.UnixConn, end func()) {
	peer, err := fdpass.PeerOf(conn)
	if err != nil || int(peer.Uid) != os.Geteuid() && peer.Uid != 0 {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(talkTime))
	room := make([]byte, maxRequest)
	data, files, err := fdpass.ReceiveOver(conn, room, 1)
	fdpass.CloseAll(files)
	if err != nil {
		return
	}
	var r request
	var w wire
	if err = json.Unmarshal(data, &r); err == nil {
		err = s.perform(ctx, &r, &w)
	}
	if err != nil {
		w.Error = err.Error()
	}
	_ = conn.SetDeadline(time.Now().Add(talkTime))
	if data, err = json.Marshal(w); err == nil {
		_ = fdpass.SendOver(conn, data)
	}
	if r.Do == doStop {
		end()
	}
}

func (s *supervisor) perform(ctx context.Context, r *request, w *wire) error {
	ctx, cancel := context.WithTimeout(ctx, orderTime+startTime)
	defer cancel()
	switch r.Do {
	case doState:
		st, err := s.status(ctx)
		w.State, w.Text = st, st.Text
		return err
	case doMake:
		n, err := config.Parse(s.Network.Name, s.Network.Name, []byte(r.Text))
		if err != nil {
			return err
		}
		return s.change(ctx, n)
	case doStop:
		return nil
	}
	return fmt.Errorf("unknown request %q", r.Do)
}

func (s *supervisor) status(ctx context.Context) (*Status, error) {
	st := &Status{Supervisor: os.Getpid(), Agent: s.agent.process.PID()}
	s.now.locked(func() {
		if s.now.n != nil {
			st.Text = string(s.now.n.Format())
		}
		if s.now.process != nil {
			st.Pasta = s.now.process.PID()
		}
		st.Reserved = s.now.reserved
		st.Way, st.WayFailure, st.Restarts = s.now.has.String(), s.now.failure, s.now.restarts
	})
	r, _, err := s.agent.ask(ctx, order{Rules: true})
	st.Rules, st.Serving, st.Failure = r.Rules, r.Serving, r.Failure
	st.Restarts += r.Restarts
	for _, pid := range childrenOf(st.Agent) {
		st.Dnsmasq = pid
	}
	return st, err
}

// childrenOf returns the processes that a process has started (proc_pid_task_children(5)); none if
// the kernel does not tell. An agent has one besides a passing nft.
func childrenOf(pid int) (children []int) {
	tasks, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "children"))
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		for _, word := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil {
				children = append(children, pid)
			}
		}
	}
	return children
}
