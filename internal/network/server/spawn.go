package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/kernel/fdpass"
)

// Spawn starts a program that outlives this process, and returns once it says that it is ready, as
// sd_notify(3) describes. An error has what the program wrote to stderr. A program that is not
// ready in time is killed.
func Spawn(ctx context.Context, argv []string) (err error) {
	notices, err := fdpass.ListenForNotices()
	if err != nil {
		return err
	}
	defer notices.Close()
	words, err := os.CreateTemp("", "vmnet-network")
	if err != nil {
		return err
	}
	defer words.Close()
	if err := os.Remove(words.Name()); err != nil { // so nothing is left of it
		return err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stderr, cmd.Env = "/", words, append(os.Environ(), "NOTIFY_SOCKET="+notices.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", strings.Join(argv, " "), err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ready := make(chan error, 1)
	go func() { ready <- awaitReady(notices) }() // until notices is closed
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

// awaitReady returns once a notice says READY=1.
func awaitReady(notices *fdpass.Notices) error {
	for {
		text, err := notices.Next()
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
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
