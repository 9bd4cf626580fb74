package libvirt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

func TestResolve(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	t.Setenv("XDG_CACHE_HOME", "/home/u/.cache")
	for _, test := range []struct {
		dialer Dialer
		uri    string
		paths  []string
	}{
		{Dialer{}, System, []string{"/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"}},
		{
			Dialer{URI: System, ReadOnly: true},
			System,
			[]string{"/run/libvirt/libvirt-sock-ro", "/run/libvirt/virtqemud-sock-ro"},
		},
		{
			Dialer{URI: Session, ReadOnly: true},
			Session,
			[]string{"/run/user/7/libvirt/libvirt-sock", "/run/user/7/libvirt/virtqemud-sock"},
		},
		{Dialer{URI: "qemu+unix:///session?socket=/x", ReadOnly: true}, Session, []string{"/x"}},
		{Dialer{URI: "qemu+unix:///system?socket=/x", Path: "/y"}, System, []string{"/y"}},
		{Dialer{Path: "/y"}, System, []string{"/y"}},
	} {
		uri, paths, err := test.dialer.resolve()
		if err != nil || uri != test.uri || !cmp.Equal(paths, test.paths) {
			t.Errorf("%+v: %s %v, %v", test.dialer, uri, paths, err)
		}
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	if _, paths, err := (Dialer{URI: Session}).resolve(); err != nil ||
		paths[0] != "/home/u/.cache/libvirt/libvirt-sock" {
		t.Errorf("%v, %v", paths, err)
	}
	for _, uri := range []string{
		"xen:///system", "qemu+ssh://host/system", "qemu://host/system", "qemu:///",
		"qemu:///embed", "system", "%",
	} {
		if _, _, err := (Dialer{URI: uri}).resolve(); err == nil {
			t.Errorf("%s was taken", uri)
		}
	}
}

func TestFindsVirtqemud(t *testing.T) {
	path, _ := listen(t)
	stale := staleSocket(t)
	uc, got, err := connectFirst(t.Context(), []string{path + "-none", stale, path})
	if err != nil || got != path {
		t.Fatalf("%s, %v", got, err)
	}
	_ = uc.Close()
	_, _, err = connectFirst(t.Context(), []string{path + "-none", stale})
	if !errors.Is(err, ErrNoConnection) || !strings.Contains(err.Error(), "-none") ||
		!strings.Contains(err.Error(), stale) {
		t.Error(err)
	}
}

// staleSocket creates a socket without a listener, as a killed daemon leaves it.
func staleSocket(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stale")
	nstest.LeaveSocket(t, "unix", path)
	return path
}

// TestAuthentication plays daemons that require authentication.
func TestAuthentication(t *testing.T) {
	types := func(all ...authType) func(*encoder) {
		return func(e *encoder) {
			e.uint32(uint32(len(all)))
			for _, a := range all {
				e.uint32(uint32(a))
			}
		}
	}
	for name, test := range map[string]struct {
		play func(f *fake)
		want error
		text string
	}{
		"none": {func(f *fake) { f.open() }, nil, ""},
		"empty list": {func(f *fake) {
			f.reply(f.expect(authList), types())
			f.reply(f.expect(connectOpen), nil)
		}, nil, ""},
		"polkit lets in": {func(f *fake) {
			f.reply(f.expect(authList), types(authPolkit))
			f.reply(f.expect(authAskPolkit), func(e *encoder) { e.int32(1) })
			f.reply(f.expect(connectOpen), nil)
		}, nil, ""},
		"polkit or none": {func(f *fake) {
			f.reply(f.expect(authList), types(authPolkit, authNone))
			f.reply(f.expect(connectOpen), nil)
		}, nil, ""},
		"polkit refuses": {func(f *fake) {
			f.reply(f.expect(authList), types(authPolkit))
			f.refuse(f.expect(authAskPolkit), codeAuthUnavailable, "no polkit agent available")
		}, ErrAccessDenied, "group libvirt"},
		"polkit is not sure": {func(f *fake) {
			f.reply(f.expect(authList), types(authPolkit))
			f.reply(f.expect(authAskPolkit), func(e *encoder) { e.int32(0) })
		}, ErrAccessDenied, "group libvirt"},
		"SASL":    {func(f *fake) { f.reply(f.expect(authList), types(authSASL)) }, ErrAccessDenied, "auth_unix_rw"},
		"unknown": {func(f *fake) { f.reply(f.expect(authList), types(77)) }, ErrAccessDenied, "77"},
		"too many": {func(f *fake) {
			f.reply(f.expect(authList), func(e *encoder) { e.uint32(maxAuth + 1) })
		}, ErrProtocol, ""},
		"no driver": {func(f *fake) {
			f.reply(f.expect(authList), types(authNone))
			f.refuse(f.expect(connectOpen), codeNoConnect, "no connection driver available")
		}, ErrNoConnection, "no connection driver"},
		"hangs up": {func(f *fake) { f.expect(authList); _ = f.uc.Close() }, ErrNoConnection, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path, accept := listen(t)
			played := make(chan *fake, 1)
			go func() {
				f := accept()
				test.play(f)
				played <- f
			}()
			c, err := Dial(within(t, 20*time.Second), path)
			f := <-played
			_ = f.uc.Close()
			if c != nil {
				_ = c.Close()
			}
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil && test.text == "") ||
				err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestDialOfAStandingDaemon: a dial to a stopped daemon ends with its context.
func TestDialOfAStandingDaemon(t *testing.T) {
	path, _ := listen(t)
	if _, err := Dial(within(t, 50*time.Millisecond), path); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, path); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestFullBacklog: the daemon accepts no connection, and connect(2) returns EAGAIN.
func TestFullBacklog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "full")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := connectFirst(t.Context(), []string{path})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := Dial(within(t, 50*time.Millisecond), path); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestNoSocket dials a plain file.
func TestNoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), path); !errors.Is(err, ErrNoConnection) {
		t.Error(err)
	}
}
