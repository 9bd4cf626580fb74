package control

import (
	"errors"
	"io/fs"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/capture"
)

// The verbs of requests.
const (
	DoInfo         = "info"
	DoPorts        = "ports"
	DoAddPort      = "add-port"
	DoSetLabel     = "set-label"
	DoRemovePort   = "remove-port"
	DoFDB          = "fdb"
	DoFlush        = "flush"
	DoAddStatic    = "add-static"
	DoRemoveStatic = "remove-static"
	DoCapture      = "capture"
	DoStop         = "stop"
)

// maxMessage limits a message, in bytes.
const MaxMessage = 64 << 10

// request is what a client sends. Its verb determines the files that come with it.
type Request struct {
	Do    string    `json:"do"`
	Port  *Port     `json:"port,omitempty"`  // add-port
	Name  string    `json:"name,omitempty"`  // name of a port
	Label string    `json:"label,omitempty"` // set-label
	Entry *FDBEntry `json:"entry,omitempty"` // add-static, remove-static

	Capture *capture.Config `json:"capture,omitempty"`
}

// answer is one message of a reply. All but the last one have More set.
type Reply struct {
	More  bool           `json:"more,omitempty"`
	Error *Refusal       `json:"error,omitempty"`
	Info  *Info          `json:"info,omitempty"`
	Ports list[Port]     `json:"ports,omitempty"`
	FDB   list[FDBEntry] `json:"fdb,omitempty"`
}

// refusal is an error that was sent to the client: its text, and the kind of error that it matches.
type Refusal struct {
	Text string `json:"text"`
	Kind string `json:"kind,omitempty"`
}

func (r *Refusal) Error() string { return r.Text }

func (r *Refusal) Is(target error) bool {
	return r.Kind == "exist" && target == fs.ErrExist ||
		r.Kind == "not-exist" && target == fs.ErrNotExist ||
		r.Kind == "invalid" && target == brport.ErrInvalid
}

// refuse converts err into a refusal.
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
