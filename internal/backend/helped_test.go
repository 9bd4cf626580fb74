package backend

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"vmnet/internal/kernel/fdpass"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// helperEnv has the test binary work as the privileged helper, in the way that it says. The netns
// is that of helperNetnsEnv.
const (
	helperEnv      = "VMNET_TEST_HELPER"
	helperNetnsEnv = "VMNET_TEST_HELPER_NETNS"
)

// helperRole is what the helper does.
func helperRole(way string) error {
	sock, err := fdpass.Inherited(3) // as its flag says
	if err != nil {
		return err
	}
	defer sock.Close()
	switch way {
	case "ends":
		return errors.New("the helper has other plans")
	case "answers with nothing":
		var r tapRequest
		files, err := receive(sock, &r)
		fdpass.CloseAll(files)
		return errors.Join(err, send(sock, tapResponse{Interface: "eth0"}))
	}
	return In(os.Getenv(helperNetnsEnv), func(m *Maker) error {
		return m.Serve(context.Background(), sock, func(nic.Spec) error {
			if way == "denies" {
				return errors.New("the policy denies it")
			}
			return nil
		})
	})
}

// helped plans a NIC on br0 that a helper makes, which works in that way.
func helped(t *testing.T, m *Maker, way string) (*NIC, []step.Step) {
	t.Helper()
	t.Setenv(helperEnv, way)
	t.Setenv(helperNetnsEnv, m.NS.Path())
	h := m.New(ask(onBridge), nic.PhaseAttaching)
	err := h.PlanInterface(t.Context())
	if err == nil {
		err = h.PlanDevice(2)
	}
	if err != nil {
		t.Fatal(err)
	}
	steps, err := h.HostSteps(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return h, steps
}

var errFault = errors.New("a fault")

// TestHelperMakesATap: the helper's tap is the caller's, with all its queues, and its record is
// final once the caller has plugged it. If the caller gives up, it goes.
func TestHelperMakesATap(t *testing.T) {
	m := onTap(t)
	m.HelperPath = "/proc/self/exe"
	h, steps := helped(t, m, "makes it")
	if err := step.Run(t.Context(), steps, nil); err != nil {
		t.Fatal(err)
	}
	l := linkOf(t, m, h.Interface.Name)
	if r, ok := nic.ParseRecord(l.Alias); len(h.Files.Queues) != 2 || l.Master != linkOf(t, m, "br0").Index || !l.Up ||
		!ok || r.Phase != nic.PhaseAttaching || r.Queues != 2 {
		t.Errorf("%d queues of %+v", len(h.Files.Queues), l)
	}
	dev, err := h.Verify(t.Context())
	if err != nil || dev.MasterName != "br0" || dev.Want.Phase != nic.PhasePlugged {
		t.Fatalf("%+v, %v", dev, err)
	}
	if r, ok := nic.ParseRecord(linkOf(t, m, l.Name).Alias); !ok || r.Phase != nic.PhasePlugged {
		t.Errorf("plugged: %+v", r)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.NL.Link(l.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its queues it is there: %v", err)
	}

	h, steps = helped(t, m, "makes it")
	err = step.Run(t.Context(), steps, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
		return errors.Join(do(ctx), errFault)
	})
	if !errors.Is(err, errFault) {
		t.Error(err)
	}
	if _, linkErr := m.NL.Link(h.Interface.Name); !errors.Is(linkErr, fs.ErrNotExist) {
		t.Errorf("undone: %v, %v", linkErr, err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

// TestHelperThatFails: the error says what the helper has said, answered or printed, and nothing is
// left.
func TestHelperThatFails(t *testing.T) {
	m := onTap(t)
	for way, tc := range map[string]struct{ path, want string }{
		"denies":               {"/proc/self/exe", "the policy denies it"},
		"ends":                 {"/proc/self/exe", "the helper has other plans"},
		"answers with nothing": {"/proc/self/exe", "handed over 0 queues of 2"},
		"is not there":         {"/nowhere/qemu-netup", "install qemu-netup setuid root"},
	} {
		m.HelperPath = tc.path
		h, steps := helped(t, m, way)
		if err := step.Run(t.Context(), steps, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("it %s: %v, want %s", way, err, tc.want)
		}
		if _, err := m.NL.Link(h.Interface.Name); !errors.Is(err, fs.ErrNotExist) || len(h.Files.Queues) > 0 {
			t.Errorf("it %s: %v, %d queues", way, err, len(h.Files.Queues))
		}
		if err := h.Close(); err != nil {
			t.Errorf("it %s: %v", way, err)
		}
	}
	h := m.New(ask(onLower), nic.PhaseAttaching)
	defer h.Close()
	if err := h.PlanInterface(t.Context()); err == nil || !strings.Contains(err.Error(), "only root makes a macvtap") {
		t.Errorf("a macvtap: %v", err)
	}
}
