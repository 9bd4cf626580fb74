package ovs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"strings"

	"vmnet/internal/ovsdb"
)

// maxTrace bounds the answer of ovs-vswitchd.
const maxTrace = 1 << 20

// Trace asks the ovs-vswitchd beside a database what it does with a packet of a flow (ofproto/trace
// of ovs-vswitchd(8)), which sends nothing. path is the database's socket; empty means the usual
// one. The text is for people; its last lines are read by [Actions].
func Trace(ctx context.Context, path, bridge, flow string) (string, error) {
	dir := filepath.Dir(cmp.Or(path, ovsdb.DefaultPath))
	sockets, err := filepath.Glob(filepath.Join(dir, "*vswitchd*.ctl"))
	if err != nil {
		return "", err
	}
	err = fmt.Errorf("no control socket of ovs-vswitchd in %s: %w (systemctl status openvswitch-switch)", dir,
		fs.ErrNotExist)
	for _, socket := range sockets {
		var text string
		if text, err = appctl(ctx, socket, "ofproto/trace", "--names", bridge, flow); err == nil {
			return text, nil
		}
	}
	return "", err
}

// appctl runs a command as ovs-appctl(8) does: a request of JSON-RPC 1.0 over a socket.
func appctl(ctx context.Context, socket, command string, args ...string) (string, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	request := map[string]any{"id": 0, "method": command, "params": append([]string{}, args...)}
	if err := json.NewEncoder(c).Encode(request); err != nil {
		return "", cmp.Or(context.Cause(ctx), err)
	}
	var reply struct{ Result, Error *string }
	err = json.NewDecoder(io.LimitReader(c, maxTrace)).Decode(&reply)
	switch {
	case err != nil:
		return "", cmp.Or(context.Cause(ctx), fmt.Errorf("%s: %w", socket, err))
	case reply.Error != nil:
		return "", errors.New(strings.Join(strings.Fields(*reply.Error), " "))
	case reply.Result == nil:
		return "", fmt.Errorf("%s: an answer without a result", socket)
	}
	return *reply.Result, nil
}

// Actions returns what a trace ends with: "drop", or a list of actions, and the names among them by
// which the packet leaves.
func Actions(trace string) (actions string, ports []string) {
	for line := range strings.Lines(trace) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "Datapath actions:"); ok {
			actions = strings.TrimSpace(text)
		}
	}
	depth, start := 0, 0
	take := func(end int) {
		if word := actions[start:end]; word != "" && !strings.Contains(word, "(") && word != "drop" {
			ports = append(ports, word)
		}
		start = end + 1
	}
	for i, r := range actions {
		switch {
		case r == '(':
			depth++
		case r == ')':
			depth--
		case r == ',' && depth == 0:
			take(i)
		}
	}
	if start < len(actions) {
		take(len(actions))
	}
	return actions, ports
}
