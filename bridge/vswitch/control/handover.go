package control

import (
	"context"
	"errors"
	"fmt"
	"os"

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
	err := c.exchange(ctx, Request{Do: DoHandOver}, nil, func(a *Reply, files []*os.File) error {
		switch {
		case a.Handed != nil:
			return take(*a.Handed, files)
		case len(a.FDB) > 0:
			return entries(a.FDB)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", DoHandOver, err)
	}
	return nil
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
