package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/libvirthook/hook"
)

// committing is the argument, after a guest's name, of a process that commits the guest's NICs. The
// socket of libvirt follows, which may be empty.
const committing = "commit"

// commitAfter sees to it that the NICs of a guest are committed once it has arrived. That is after
// the hook, for which libvirt waits, and for any process that has the hook's standard files open. A
// guest that is still where it comes from stays there if nothing could commit its NICs here.
func commitAfter(c hook.Call) error {
	_, err := vmnet()
	if err == nil && c.Op != "migrate" {
		cmd := exec.Command("/proc/self/exe", c.Guest, committing, socketOf(c.Caller))
		cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Setsid: true}
		if err = cmd.Start(); err == nil {
			err = cmd.Process.Release()
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: a process that commits its NICs: %w", c.Op, c.Guest, err)
	}
	return nil
}

// socketOf returns the path at which a libvirt daemon serves clients; empty if that is not seen.
func socketOf(libvirtd int) string {
	all, err := procview.Listening(libvirtd)
	if err != nil {
		return ""
	}
	for _, l := range all {
		base := filepath.Base(l.Name)
		if filepath.IsAbs(l.Name) && (base == "libvirt-sock" || base == "virtqemud-sock") {
			return l.Name
		}
	}
	return ""
}

// vmnet returns the path of the program that commits, which is beside this one.
func vmnet() (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(own), "vmnet")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w (install vmnet beside vmnet-hook)", err)
	}
	return path, nil
}

// The pauses between attempts double.
const (
	firstPause   = time.Second
	slowestPause = 30 * time.Second
)

// commit has vmnet commit the NICs of a guest, again for as long as there is one that waits for
// that: libvirt may be restarted meanwhile. A guest that does not arrive takes its NICs along.
func (h *handler) commit(guest, socket string) int {
	reported := ""
	for pause := firstPause; ; pause = min(2*pause, slowestPause) {
		err := tryCommit(guest, socket)
		if err == nil {
			return 0
		}
		<-time.After(pause) // devices of a guest that ends go after it
		awaits, readErr := h.awaits(guest)
		if readErr == nil && !awaits {
			return 0
		}
		if text := fmt.Sprintf("commit %s: %v", guest, errors.Join(err, readErr)); text != reported {
			h.say(text)
			reported = text
		}
	}
}

func (h *handler) awaits(guest string) (awaits bool, err error) {
	err = backend.In("", func(m *backend.Maker) (err error) {
		awaits, err = m.Awaits(context.Background(), guest)
		return err
	})
	return awaits, err
}

func tryCommit(guest, socket string) error {
	path, err := vmnet()
	if err != nil {
		return err
	}
	args := []string{"commit", "--vm", guest, "--wait"}
	if socket != "" {
		args = append(args, "--libvirt", socket)
	}
	var told tail
	cmd := exec.Command(path, args...)
	cmd.Stderr = &told
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && told.last() != "" {
		return errors.New(told.last())
	}
	return err
}

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

// maxTail is how many bytes a tail keeps.
const maxTail = 1 << 12

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-maxTail):]
	return len(p), nil
}

// last returns the last line.
func (t *tail) last() string {
	text := strings.TrimSpace(string(t.text))
	return text[strings.LastIndexByte(text, '\n')+1:]
}
