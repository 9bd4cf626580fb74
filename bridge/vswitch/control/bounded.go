package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/fdpass"
)

// Any user can run a switch with arbitrary replies, so a client limits what it reads of one reply.
const (
	// maxPortBytes limits the reply about ports, with all counters.
	maxPortBytes = 32 << 20
	// maxFDBBytes is more than the largest FDB needs.
	maxFDBBytes = 256 << 20
	// maxMessages is more than the largest FDB needs.
	maxMessages = 1 << 16
	// maxItems is the most items that fit into one message of a switch.
	maxItems = MaxMessage / 32
	// maxReasons is more than the number of drop reasons.
	maxReasons = 256
)

// maxAnswer returns the limit in bytes of the reply to that request, over all messages.
func maxAnswer(do string) int {
	switch do {
	case DoPorts:
		return maxPortBytes
	case DoFDB:
		return maxFDBBytes
	case DoHandOver:
		return maxPortBytes + maxFDBBytes
	}
	return MaxMessage
}

// maxAnswerFiles returns the most files that come with a message of the reply.
func maxAnswerFiles(do string) int {
	if do == DoHandOver {
		return fdpass.MaxFiles
	}
	return 0
}

// list is the part of a list in one message. It limits the number of items while it decodes, so
// that a hostile switch cannot make the client allocate very many empty items.
type list[T any] []T

// UnmarshalJSON implements [json.Unmarshaler].
func (l *list[T]) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	start, err := d.Token()
	if err != nil {
		return err
	}
	if start != json.Delim('[') {
		return fmt.Errorf("want a list, not %.20q", text)
	}
	for d.More() {
		var item T
		if len(*l) == maxItems {
			return fmt.Errorf("more than %d items in one message", maxItems)
		}
		if err := d.Decode(&item); err != nil {
			return err
		}
		*l = append(*l, item)
	}
	return nil
}

// EachPort calls visit for each port of the switch as they arrive, and keeps none of them in
// memory. It fails if a port is invalid, if the reply has more than 1024 ports or 32 MiB, or if
// visit fails.
func (c *Client) EachPort(ctx context.Context, visit func(Port) error) error {
	count := 0
	return c.ask(ctx, Request{Do: DoPorts}, nil, func(a *Reply) error {
		for _, p := range a.Ports {
			if count++; count > vport.MaxPorts {
				return fmt.Errorf("the switch has sent more than %d ports, the most that a switch can have",
					vport.MaxPorts)
			}
			if err := p.checkReply(); err != nil {
				return fmt.Errorf("port %.40q: %w", p.Name, err)
			}
			if err := visit(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkReply checks a port that a switch has sent.
func (p Port) checkReply() error {
	stats := p.Stats
	p.Stats = nil
	if stats != nil && len(stats.Drops) > maxReasons {
		return fmt.Errorf("%d drop reasons: want at most %d", len(stats.Drops), maxReasons)
	}
	return p.Validate()
}

// EachFDB calls visit for each address in the FDB, in sorted order, as EachPort does for ports.
func (c *Client) EachFDB(ctx context.Context, visit func(FDBEntry) error) error {
	return c.ask(ctx, Request{Do: DoFDB}, nil, func(a *Reply) error {
		for _, e := range a.FDB {
			if err := visit(e); err != nil {
				return err
			}
		}
		return nil
	})
}
