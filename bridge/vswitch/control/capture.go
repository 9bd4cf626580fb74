package control

import (
	"context"
	"errors"
	"os"

	"vmnet/bridge/vswitch"
)

// Capture has copies of a switch's frames come to the reader that it returns, which the caller closes; that, or the end of this
// process, ends the capture. Where raising the buffers between them is allowed to this process, more frames may come at once
// (vswitch.CapturePipe). No such port is an error that Is fs.ErrNotExist.
func (c *Client) Capture(ctx context.Context, cfg vswitch.CaptureConfig) (*vswitch.CaptureReader, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r, far, err := vswitch.CapturePipe()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	if err := c.exchange(ctx, request{Do: doCapture, Capture: &cfg}, []*os.File{far}, nil); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (s *Server) capture(c *call) error { return s.ports.sw.Capture(c.files[0], *c.Capture) }
