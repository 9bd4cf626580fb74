package control

import (
	"encoding/json"
	"errors"
	"io/fs"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/vport"
)

// The verbs of requests (Request.Do).
const (
	DoInfo         = "info"
	DoPorts        = "ports"
	DoAddPort      = "add-port"
	DoSetLabel     = "set-label"
	DoSetPort      = "set-port"
	DoAnnounce     = "announce"
	DoRemovePort   = "remove-port"
	DoFDB          = "fdb"
	DoFlush        = "flush"
	DoAddStatic    = "add-static"
	DoRemoveStatic = "remove-static"
	DoCapture      = "capture"
	DoStop         = "stop"
	DoHandOver     = "hand-over"
	DoTaken        = "taken"
)

// MaxMessage is the limit of a message in bytes.
const MaxMessage = 64 << 10

// A Request is what a client sends, as one JSON object. Its verb determines the files that come
// with it (SCM_RIGHTS).
type Request struct {
	Do    string `json:"do"`              // one of the verbs
	Port  *Port  `json:"port,omitempty"`  // add-port
	Name  string `json:"name,omitempty"`  // name of a port
	Label string `json:"label,omitempty"` // set-label

	Config *vport.Config `json:"config,omitempty"` // set-port

	Frames [][]byte `json:"frames,omitempty"` // announce

	Entry *FDBEntry `json:"entry,omitempty"` // add-static, remove-static

	Capture *capture.Config `json:"capture,omitempty"` // capture
}

// A Reply is one message of the reply to a request. All but the last one have More set. Only the
// last one has Error, which is nil if the request was carried out.
type Reply struct {
	More  bool           `json:"more,omitempty"`
	Error *Refusal       `json:"error,omitempty"`
	Info  *Info          `json:"info,omitempty"`
	Ports list[Port]     `json:"ports,omitempty"`
	FDB   list[FDBEntry] `json:"fdb,omitempty"`

	Handed *Handed `json:"handed,omitempty"` // hand-over; comes with files
}

// Handed is a part of a switch that is handed over. The switch's listening socket comes first,
// with standard output and standard error, where the switch goes on to report. Then each port comes
// with the files that AddPort takes for it. Before it comes its Rest, if it has one, with a file of
// the bytes that were read and those that wait, the connection, and the files of a session.
type Handed struct {
	Port   *Port       `json:"port,omitempty"`
	Stored Stored      `json:"stored,omitzero"` // of the port
	Rest   *HandedRest `json:"rest,omitempty"`

	Store *HandedStore `json:"store,omitempty"` // comes without a file
}

// Stored says under which names a port's files are in the store of a service manager, which has
// them for the next process (package server). The zero value is for a port that is not there.
type Stored struct {
	ID      int `json:"id"`                // of the port in the store, from 1
	Version int `json:"version"`           // of its description; 0 if that is not there yet
	Files   int `json:"files"`             // how many of them are there
	Session int `json:"session,omitempty"` // files of a session with a frontend, and its description
}

// HandedStore says what a store has besides the ports that are handed over. It may come in several
// parts.
type HandedStore struct {
	Whole  bool     `json:"whole,omitempty"`  // the store has all ports
	Forget []string `json:"forget,omitempty"` // names that are to be forgotten
}

// HandedRest says what is in the file of a port's vswitch.Rest.
type HandedRest struct {
	Name    string `json:"name"`    // of the port
	Read    int    `json:"read"`    // bytes of the file
	Backlog int    `json:"backlog"` // bytes after these
	Skip    int    `json:"skip"`

	Link json.RawMessage `json:"link,omitempty"`

	// Session is that of a frontend. Its files come last, after the connection if Conn is set.
	Session json.RawMessage `json:"session,omitempty"`
	Conn    bool            `json:"conn,omitempty"`
}

// A Refusal is an error that the server sends: its text, and the kind of error that it matches.
type Refusal struct {
	Text string `json:"text"`
	Kind string `json:"kind,omitempty"` // "exist", "not-exist" or "invalid"; empty for any other
}

// Error returns the text.
func (r *Refusal) Error() string { return r.Text }

// Is reports whether the kind stands for target: fs.ErrExist, fs.ErrNotExist or brport.ErrInvalid.
func (r *Refusal) Is(target error) bool {
	return r.Kind == "exist" && target == fs.ErrExist ||
		r.Kind == "not-exist" && target == fs.ErrNotExist ||
		r.Kind == "invalid" && target == brport.ErrInvalid
}

// Refuse converts an error into a Refusal, and cuts its text to an eighth of a message.
func Refuse(err error) *Refusal {
	r := &Refusal{Text: err.Error()}
	switch {
	case errors.Is(err, fs.ErrExist):
		r.Kind = "exist"
	case errors.Is(err, fs.ErrNotExist):
		r.Kind = "not-exist"
	case errors.Is(err, brport.ErrInvalid):
		r.Kind = "invalid"
	}
	if len(r.Text) > MaxMessage/8 { // JSON may take six bytes for one
		r.Text = r.Text[:MaxMessage/8]
	}
	return r
}
