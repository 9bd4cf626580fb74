// Package agent asks the QEMU guest agent (qemu-ga(8), qga/qapi-schema.json) in a guest for its
// addresses. The guest answers what it likes, and its VMM's command line names any socket: a
// connection is used only if that VMM itself listens, what is read is bounded, and every wait ends
// with the caller's context.
package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/vmm/qemu"
)

// Bounds of what an agent may say.
const (
	maxAnswer    = 256 << 10 // bytes of all that the guest sends
	maxAddresses = 16        // of one interface; further ones are left out
)

// An Interface is a network interface of the guest, as its agent describes it.
type Interface struct {
	MAC   string // in the form of net.HardwareAddr
	Addrs []netip.Addr
}

// ErrNone is the error for a guest without an agent, or whose agent is another manager's.
var ErrNone = errors.New("no guest agent on a socket of its VMM")

// Interfaces asks the agent of the guest of a VMM. An agent that does not run, or is in use, does
// not answer: ctx must end soon.
func Interfaces(ctx context.Context, p qemu.Process) ([]Interface, error) {
	if p.Agent == "" {
		return nil, ErrNone
	}
	conn, err := connect(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("connect to the guest agent: %w", err)
	}
	defer conn.Close()
	if err := fdpass.PeerIs(conn.(*net.UnixConn), p.PID, p.Agent); err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	all, err := ask(conn)
	if err != nil {
		return nil, fmt.Errorf("guest agent: %w", errors.Join(context.Cause(ctx), err))
	}
	return all, nil
}

// connect connects to the socket that the VMM means, as far as it is there.
func connect(ctx context.Context, p qemu.Process) (conn net.Conn, err error) {
	var d net.Dialer
	if strings.HasPrefix(p.Agent, "@") {
		return d.DialContext(ctx, "unix", p.Agent)
	}
	files, err := procview.Locate(ctx, p.PID, p.Agent)
	if err != nil {
		return nil, err
	}
	defer fdpass.CloseAll(files)
	for _, f := range files {
		if conn, err = d.DialContext(ctx, "unix", procview.Address(f)); err == nil {
			break
		}
	}
	return conn, err
}

// delimiter precedes the answer to guest-sync-delimited. No JSON text contains that byte.
const delimiter = 0xff

func ask(conn io.ReadWriter) ([]Interface, error) {
	id := rand.Int32()
	_, err := fmt.Fprintf(conn, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n"+
		"{\"execute\":\"guest-network-get-interfaces\"}\n", id)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(io.LimitReader(conn, maxAnswer))
	for { // answers to a former client may come first
		if _, err := r.ReadSlice(delimiter); errors.Is(err, bufio.ErrBufferFull) {
			continue
		} else if err != nil {
			return nil, err
		}
		var synced struct{ Return int32 }
		line, err := r.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		if json.Unmarshal(line, &synced) == nil && synced.Return == id {
			break
		}
	}
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	return parse(line)
}

// parse decodes the answer to guest-network-get-interfaces. It leaves out interfaces without a
// MAC, and what is no address of a host.
func parse(line []byte) (all []Interface, err error) {
	var answer struct {
		Return []struct {
			MAC string `json:"hardware-address"`
			IPs []struct {
				IP string `json:"ip-address"`
			} `json:"ip-addresses"`
		}
		Error struct{ Desc string }
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return nil, err
	}
	if answer.Error.Desc != "" {
		return nil, fmt.Errorf("it refuses: %s", answer.Error.Desc)
	}
	for _, i := range answer.Return {
		mac, err := net.ParseMAC(i.MAC)
		if err != nil {
			continue
		}
		found := Interface{MAC: mac.String()}
		for _, a := range i.IPs {
			ip, err := netip.ParseAddr(a.IP)
			if err == nil && ip.Zone() == "" && !ip.IsUnspecified() && !ip.IsMulticast() &&
				len(found.Addrs) < maxAddresses {
				found.Addrs = append(found.Addrs, ip)
			}
		}
		all = append(all, found)
	}
	return all, nil
}
