package control

import (
	"context"
	"errors"
	"os"

	"vmnet/bridge/vswitch/capture"
)

// Capture starts a capture and returns the reader that receives copies of the frames. The
// caller closes the reader; that, or the end of this process, ends the capture. If this process may
// raise the buffers, more frames may arrive at once (capture.Pipe). If there is no such
// port, the error matches fs.ErrNotExist with errors.Is.
func (c *Client) Capture(ctx context.Context, cfg capture.Config) (*capture.Reader, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r, far, err := capture.Pipe()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	if err := c.exchange(ctx, Request{Do: DoCapture, Capture: &cfg}, []*os.File{far}, nil); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}
