package fakelibvirt

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"vmnet/internal/kernel/fdpass"
)

type object = map[string]any

// monitor is the daemon's connection to the guest's QEMU.
type monitor struct {
	conn    *net.UnixConn
	asking  sync.Mutex
	replies chan string
}

// connect opens the monitor. Until QEMU ends, each of its events is passed to event, and then ended
// is called.
func connect(path string, event func(name string, data object), ended func()) (*monitor, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, replies: make(chan string)}
	go func() {
		lines := bufio.NewScanner(conn)
		lines.Scan() // the greeting
		for lines.Scan() {
			var line struct {
				Event string
				Data  object
			}
			_ = json.Unmarshal(lines.Bytes(), &line) // what is not an event is a reply
			if line.Event != "" {
				event(line.Event, line.Data)
			} else {
				m.replies <- strings.TrimSpace(lines.Text())
			}
		}
		close(m.replies)
		ended()
	}()
	_, err = m.pass(`{"execute": "qmp_capabilities"}`, nil)
	return m, err
}

// pass sends a command, and returns QEMU's reply as it is.
func (m *monitor) pass(command string, f *os.File) (reply string, err error) {
	m.asking.Lock()
	defer m.asking.Unlock()
	var files []*os.File
	if f != nil {
		files = append(files, f)
	}
	if err := fdpass.SendOver(m.conn, []byte(command+"\n"), files...); err != nil {
		return "", err
	}
	reply, open := <-m.replies
	if !open {
		return "", net.ErrClosed
	}
	return reply, nil
}

// do has QEMU carry out a command.
func (m *monitor) do(command string, arguments object, f *os.File) error {
	text, err := json.Marshal(object{"execute": command, "arguments": arguments})
	if err != nil {
		return err
	}
	reply, err := m.pass(string(text), f)
	if err != nil {
		return err
	}
	var r struct{ Error *struct{ Desc string } }
	if err := json.Unmarshal([]byte(reply), &r); err != nil {
		return err
	}
	if r.Error != nil {
		return fmt.Errorf("internal error: unable to execute QEMU command '%s': %s", command, r.Error.Desc)
	}
	return nil
}
