package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/fdpass"
)

// HandOver asks the switch to hand over its ports and its listening socket, with which it stops
// serving, and calls take for each part that comes, and then entries with its addresses. take must
// copy the files that it keeps. The switch goes on by itself if it does not hear Taken within 10
// seconds, or if the connection ends. It hands over to its own user and root only. After an error
// of HandOver, the Client is unusable: close it.
func (c *Client) HandOver(ctx context.Context, take func(Handed, []*os.File) error,
	entries func([]FDBEntry) error,
) error {
	b, err := json.Marshal(Request{Do: DoHandOver})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	defer c.deadline(ctx)()
	if err = fdpass.SendOver(c.conn, b); err == nil {
		err = c.takeParts(take, entries)
	}
	if err != nil {
		c.broken = fmt.Errorf("the connection broke earlier: %w", err)
		return fmt.Errorf("%s: %w", DoHandOver, deadlineCause(ctx, err))
	}
	return nil
}

// maxParts is more messages than a switch with all its ports and addresses sends.
const maxParts = 2*vport.MaxPorts + maxMessages

func (c *Client) takeParts(take func(Handed, []*os.File) error, entries func([]FDBEntry) error) error {
	room := make([]byte, MaxMessage)
	for range maxParts {
		payload, files, err := fdpass.ReceiveOver(c.conn, room, fdpass.MaxFiles)
		if err != nil {
			return err
		}
		var a Reply
		if err = json.Unmarshal(payload, &a); err == nil {
			switch {
			case a.Error != nil:
				err = a.Error
			case a.Handed != nil:
				err = take(*a.Handed, files)
			case len(a.FDB) > 0:
				err = entries(a.FDB)
			}
		}
		fdpass.CloseAll(files)
		if err != nil || !a.More {
			return err
		}
	}
	return errors.New("the switch has sent too many parts")
}

// Taken tells the switch that the caller serves its ports from now on. The switch closes their
// files, and then ends. Once the request is sent, only a refusal, or a switch that still runs and
// does not answer within ctx, is an error: one that has ended has closed them as well.
func (c *Client) Taken(ctx context.Context) error {
	pidfd := fdpass.PeerPidfd(c.conn)
	if pidfd != nil {
		defer pidfd.Close()
	}
	err := c.ask(ctx, Request{Do: DoTaken}, nil, nil)
	if errors.Is(err, errHungUp) && pidfd != nil && hasEnded(pidfd) {
		return nil
	}
	return err
}
