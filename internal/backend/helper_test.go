package backend

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// FuzzServe sends arbitrary messages to a helper whose policy denies all: nothing is made, the
// policy is only called with valid Specs, and the answer is an error.
func FuzzServe(f *testing.F) {
	good, err := json.Marshal(tapRequest{
		VM: "P1", NIC: "net0", Bridge: "br0", MAC: "52:54:00:00:00:01",
		Model: "virtio-net-pci", Queues: 1,
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, true)
	f.Add([]byte(`{"vm":"P1"}`), false)
	f.Add([]byte(`{"queues":-1,"mac":"x","port":"vlan=0"} {}`), false)
	f.Add([]byte("\x00"), true)
	ns, err := netns.Current()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = ns.Close() })
	f.Fuzz(func(t *testing.T, message []byte, withFile bool) {
		if len(message) == 0 || len(message) > 100<<10 {
			return // nothing to send, and more than a socket takes
		}
		m, err := Open(ns)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		m.Owner = 1
		m.Run = func(context.Context, []step.Step) error {
			t.Errorf("%q: devices are made", message)
			return errors.New("not here")
		}
		client, sock := socketPair(t)
		defer client.Close()
		defer sock.Close()
		var files []*os.File
		if withFile {
			files = append(files, os.Stdin)
		}
		if err := client.Send(message, files...); err != nil {
			t.Fatal(err)
		}
		err = m.Serve(t.Context(), sock, func(s nic.Spec) error {
			if err := s.Validate(); err != nil || s.Lower != nil || s.Bridge == "" || s.MAC == nil {
				t.Errorf("%q: asked for %+v, %v", message, s, err)
			}
			return errors.New("denied")
		})
		answer, files, received := client.Receive(maxMessage)
		defer fdpass.CloseAll(files)
		var o tapResponse
		if received == nil {
			received = json.Unmarshal(answer, &o)
		}
		if err == nil || received != nil || o.Error == "" || o.Interface != "" || len(files) > 0 {
			t.Errorf("%q: %v; answered %q with %d files, %v", message, err, answer, len(files), received)
		}
	})
}

func socketPair(t *testing.T) (ours, theirs *fdpass.Socket) {
	t.Helper()
	ours, file, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = file.Close()
	}
	if err == nil {
		theirs, err = fdpass.Inherited(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}
