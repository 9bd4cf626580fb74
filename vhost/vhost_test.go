package vhost_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
	"vmnet/vhost"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestLiveOpen knows both outcomes. In a lab host, whose kernel has vhost-net, Open succeeds.
func TestLiveOpen(t *testing.T) {
	f, err := vhost.Open()
	if _, statErr := os.Stat(vhost.Device); errors.Is(statErr, fs.ErrNotExist) {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "modprobe vhost_net") {
			t.Errorf("without %s: got %v, want not-exist with the cure", vhost.Device, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	bits, err := vhost.Features(f)
	if err != nil || bits&vhost.FeatureMrgRxbuf == 0 {
		t.Errorf("features %#x, %v: want mergeable buffers", bits, err)
	}
}

func TestFeaturesOfSomethingElse(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := vhost.Features(f); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("got %v, want ENOTTY", err)
	}
}
