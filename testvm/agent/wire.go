// Package agent is the line between a test and the program inside its guest:
// JSON requests and replies, one a line, over a virtio-serial port.
//
// Either end may come and go. Every message starts with a newline as well as
// ending in one, so that what a lost peer left half written spoils nothing
// but itself; blank lines and lines that are no message are skipped. A
// reply whose request was abandoned is dropped.
package agent

import (
	"bufio"
	"encoding/json"
	"errors"
)

// PortName is the name of the virtio-serial port.
const PortName = "vmnet.agent"

// MaxLine bounds a message in bytes; what is longer is skipped.
const MaxLine = 4 << 20

// cancelMethod abandons the running request whose id is its params.
const cancelMethod = "cancel"

type request struct {
	ID     string `json:"id"`
	Method string `json:"method"`
	// TimeoutMS ends the request in the guest, in milliseconds; 0 means maxRun.
	TimeoutMS int64           `json:"timeout_ms,omitempty"`
	Params    json.RawMessage `json:"params,omitempty"`
}

// response is the reply to a request, or with Part a piece that comes before it.
type response struct {
	ID     string          `json:"id"`
	Part   json.RawMessage `json:"part,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// encode frames one message.
func encode(message any) ([]byte, error) {
	line, err := json.Marshal(message)
	if err != nil {
		return nil, err
	}
	if len(line) > MaxLine {
		return nil, errors.New("the message is too long")
	}
	return append(append([]byte{'\n'}, line...), '\n'), nil
}

// readLine reads up to the next newline, which it drops. A line that is longer
// than MaxLine comes as nil, and so does an empty one.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	tooLong := false
	for {
		part, err := r.ReadSlice('\n')
		if tooLong = tooLong || len(line)+len(part) > MaxLine+1; !tooLong {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil:
			return nil, err
		case tooLong || len(line) < 2:
			return nil, nil
		default:
			return line[:len(line)-1], nil
		}
	}
}
