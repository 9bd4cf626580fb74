package rtnl

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Batch is a list of requests that the kernel handles within one system call: no signal, not even
// SIGKILL, ends this process between two of them. One that fails does not keep the others from
// being handled.
type Batch struct{ requests []batched }

type batched struct {
	req    *nl.NetlinkRequest
	what   string  // for an error
	ignore []error // errors that are success
}

func (b *Batch) add(what string, req *nl.NetlinkRequest, ignore ...error) {
	b.requests = append(b.requests, batched{req, what, ignore})
}

// Set adds the request of [Conn.Set].
func (b *Batch) Set(what string, index int, attrs ...Attr) {
	b.add(what, new(Conn).linkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK, index, attrs), unix.EAFNOSUPPORT)
}

// maxBatch bounds the requests of a batch. The kernel keeps each answer, a copy of the request with
// a header, until it is read; a host with more routes than that has a routing daemon, which finds
// the new link by itself.
const maxBatch = 8192

// ErrTooMany is the error for a batch that is too long.
var ErrTooMany = errors.New("too many addresses, routes and neighbors for one batch")

// Do runs a batch, and returns the errors of its requests joined.
func (c *Conn) Do(b *Batch) error {
	if len(b.requests) > maxBatch {
		return fmt.Errorf("%d: %w", len(b.requests), ErrTooMany)
	}
	if len(b.requests) == 0 {
		return nil
	}
	reqs := make([]*nl.NetlinkRequest, len(b.requests))
	for i := range b.requests {
		reqs[i] = b.requests[i].req
	}
	// The kernel drops answers for which there is no room (netlink_attachskb).
	const room = maxBatch * 1024 // a request with its skb takes less
	for _, option := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		if err := c.sock.option(option, room); err != nil {
			return fmt.Errorf("make room for a batch: %w (needs CAP_NET_ADMIN)", err)
		}
	}
	answers, err := c.sock.together(reqs...)
	if err != nil {
		return err
	}
	var errs []error
	for i, r := range b.requests {
		if err := notExist(answers[i]); err != nil && !isAny(err, r.ignore) {
			errs = append(errs, fmt.Errorf("%s: %w", r.what, err))
		}
	}
	return errors.Join(errs...)
}

func isAny(err error, targets []error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}
