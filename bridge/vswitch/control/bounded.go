package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
)

// Anybody can run a switch that answers anything, so what a client reads of one answer is bounded.
const (
	// maxPortCount is how many ports a switch has at most.
	maxPortCount = 1024
	// maxPortBytes bounds their answer, with all counters.
	maxPortBytes = 32 << 20
	// maxFDBBytes is more than the biggest FDB needs.
	maxFDBBytes = 256 << 20
	// maxMessages is more than the biggest FDB needs.
	maxMessages = 1 << 16
	// maxItems is how many items fit into one message of a switch.
	maxItems = maxMessage / 32
	// maxReasons is more than a port has reasons to drop frames.
	maxReasons = 256
)

// maxAnswer is how many bytes an answer to that request may have, all messages together.
func maxAnswer(do string) int {
	switch do {
	case doPorts:
		return maxPortBytes
	case doFDB:
		return maxFDBBytes
	}
	return maxMessage
}

// list is a part of a list that comes in one message. Where another switch sends a list of very many items that say
// nothing, it is an error before there are any.
type list[T any] []T

// UnmarshalJSON implements [json.Unmarshaler].
func (l *list[T]) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if start, err := d.Token(); err != nil || start != json.Delim('[') {
		return fmt.Errorf("want a list: %w", err)
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

// EachPort calls visit with each of the switch's ports, as they come: what visit does not keep takes no memory. Ports that
// no switch has, and an answer of more than 1024 ports or 32 MiB, are an error. So is that of visit.
func (c *Client) EachPort(ctx context.Context, visit func(Port) error) error {
	count := 0
	return c.ask(ctx, request{Do: doPorts}, nil, func(a *answer) error {
		for _, p := range a.Ports {
			if count++; count > maxPortCount {
				return fmt.Errorf("the switch has sent more than the %d ports that one can have", maxPortCount)
			}
			if err := p.answered(); err != nil {
				return fmt.Errorf("port %.40q: %w", p.Name, err)
			}
			if err := visit(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// answered checks a port that a switch has sent.
func (p Port) answered() error {
	stats := p.Stats
	p.Stats = nil
	if stats != nil && len(stats.Drops) > maxReasons {
		return fmt.Errorf("%d reasons to drop frames", len(stats.Drops))
	}
	return p.Validate()
}

// EachFDB calls visit with each of the addresses that the switch knows, in their order, as EachPort does.
func (c *Client) EachFDB(ctx context.Context, visit func(FDBEntry) error) error {
	return c.ask(ctx, request{Do: doFDB}, nil, func(a *answer) error {
		for _, e := range a.FDB {
			if err := visit(e); err != nil {
				return err
			}
		}
		return nil
	})
}
