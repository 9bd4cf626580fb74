package server

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/nstest"
)

func TestCapture(t *testing.T) {
	path, s := serve(t)
	c := client(t, path)
	a := guest(t, c, control.Port{Name: "a"})
	b := guest(t, c, control.Port{Name: "b"})
	r, err := c.Capture(soon(t), capture.Config{Ports: []string{"b", "a"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sent := frame([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, station(1))
	send(t, a, sent)
	awaitFrame(t, b)
	if err := r.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	seen := map[int]capture.Direction{}
	for range 2 {
		f, err := r.Next()
		if err != nil || !bytes.Equal(f.Data, sent) {
			t.Fatalf("%+v, %v", f, err)
		}
		seen[f.Port] = f.Direction
	}
	if seen[0] != capture.Out || seen[1] != capture.In {
		t.Errorf("%v", seen)
	}
	// The capture outlives the client's connection, but not the switch.
	_ = c.Close()
	send(t, a, sent)
	if _, err := r.Next(); err != nil {
		t.Error(err)
	}
	if err := s.ports.sw.Close(); err != nil {
		t.Error(err)
	}
	for err == nil {
		_, err = r.Next()
	}
	if err != io.EOF {
		t.Errorf("the switch is closed: %v", err)
	}
}

func TestCaptureRefusals(t *testing.T) {
	path, _ := serve(t)
	c := client(t, path)
	guest(t, c, control.Port{Name: "a"})
	files := openFiles(t)
	for _, x := range []struct {
		cfg  capture.Config
		want error
	}{
		{capture.Config{}, brport.ErrInvalid},
		{capture.Config{Ports: []string{"a", "nobody"}}, fs.ErrNotExist},
	} {
		if _, err := c.Capture(soon(t), x.cfg); !errors.Is(err, x.want) {
			t.Errorf("%+v: %v, want %v", x.cfg, err, x.want)
		}
	}
	for _, message := range []string{
		`{"do":"capture"}`, `{"do":"capture","capture":{"ports":["a"]}}`,
		`{"do":"capture","capture":{"ports":["a"],"filter":"x"}}`,
	} {
		if got := reply(t, raw(t, path), []byte(message)); !bytes.Contains([]byte(got), []byte(`"kind":"invalid"`)) {
			t.Errorf("%s: %s", message, got)
		}
	}
	nstest.Eventually(t, patience, "all files are closed", func() bool { return openFiles(t) <= files+2*3 })
}
