package main

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

// TestWithCure: an error of the kernel gets its cure, once.
func TestWithCure(t *testing.T) {
	for _, c := range cures {
		raw := fmt.Errorf("create bridge br0: %w", c.errno)
		got := withCure(raw)
		if want := raw.Error() + " (" + c.cure + ")"; got.Error() != want || !errors.Is(got, c.errno) {
			t.Errorf("%v, want %s", got, want)
		}
		if again := withCure(got); again != got {
			t.Errorf("%v became %v", got, again)
		}
	}
	full := fmt.Errorf("capture: %w", &fs.PathError{Op: "write", Path: "net0.pcapng", Err: syscall.ENOSPC})
	if got, want := withCure(full).Error(), full.Error()+" ("+cureOfFullDisk+")"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, err := range []error{
		errors.New("create bridge br0: too many open files"), // not the kernel's word
		fmt.Errorf("create bridge br0: %w (needs CAP_NET_ADMIN)", syscall.EPERM),
		fmt.Errorf("attach: %w; run vmnet as root", syscall.EPERM),
		fmt.Errorf("attach: %w", syscall.EEXIST),
		fmt.Errorf("attach: no room: %w", hidden{syscall.EMFILE}),
	} {
		if got := withCure(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// hidden is an error of the kernel with another text.
type hidden struct{ error }

func (hidden) Error() string   { return "its own words" }
func (h hidden) Unwrap() error { return h.error }
