// Package agent connects a test with the program inside its guest: JSON requests and replies, one
// per line, over a virtio-serial port.
//
// Either end may disconnect and connect again. Every message begins and ends with a newline, so
// that a message that a lost peer left half written damages no other. Blank lines and lines that
// are not a message are skipped. A reply whose request was abandoned is dropped.
package agent

import (
	"bufio"
	"encoding/json"
	"errors"
)

// PortName is the name of the virtio-serial port.
const PortName = "vmnet.agent"

// MaxLine is the maximum size of a message in bytes; longer ones are skipped.
const MaxLine = 4 << 20

// cancelMethod abandons the running request whose id it has as params.
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

// readLine reads up to the next newline, which it drops. It returns nil for an empty line and for
// one longer than MaxLine.
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
