package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Spawn starts a program that outlives this process, and returns once it says that it is ready, as
// sd_notify(3) describes. An error has what the program wrote to stderr. A program that is not
// ready in time is killed.
func Spawn(ctx context.Context, argv []string) (err error) {
	dir, err := os.MkdirTemp("", "vmnet-network")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	words, err := os.OpenFile(filepath.Join(dir, "stderr"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer words.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stderr, cmd.Env = "/", words, append(os.Environ(), "NOTIFY_SOCKET="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", strings.Join(argv, " "), err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ready := make(chan error, 1)
	go func() { ready <- awaitReady(notify) }() // until notify is closed
	select {
	case err = <-ready:
	case err = <-ended:
		if err == nil {
			err = errors.New("it has ended")
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-time.After(startTimeout + stopTimeout):
		err = errors.New("it is not ready in time")
	}
	if err == nil {
		return nil
	}
	_ = cmd.Process.Kill() // it may have ended
	return fmt.Errorf("%w: %s", err, said(words))
}

// awaitReady returns once a datagram says READY=1.
func awaitReady(c *net.UnixConn) error {
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				return nil
			}
		}
	}
}

// said returns what a program has written.
func said(f *os.File) string {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, maxWords))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(strings.ReplaceAll(string(text), "vmnet: ", ""))
}
