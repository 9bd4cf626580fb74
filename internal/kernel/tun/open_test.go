package tun

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

func TestLiveOpen(t *testing.T) {
	ns := nstest.New(t)
	for _, multi := range []bool{false, true} {
		name := fmt.Sprintf("tap%v", multi)
		made, err := Create(ns, name, multi)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(made.Persist(0), made.Close()); err != nil {
			t.Fatal(err)
		}
		most := 1
		if multi {
			most = 3
		}
		opened, err := Open(ns, name, multi, most)
		if err != nil || len(opened.Queues()) != most {
			t.Fatalf("%+v, %v", opened, err)
		}
		if _, err := Open(ns, name, !multi, 1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("the other kind: %v", err)
		}
		again, err := Open(ns, name, multi, 1)
		if errors.Is(err, unix.EBUSY) == multi {
			t.Errorf("it is held: %v", err)
		}
		if multi {
			err = again.Close()
		} else {
			err = nil
		}
		if err := errors.Join(err, opened.Close()); err != nil {
			t.Error(err)
		}
		if _, err := nstest.Handle(t, ns).LinkByName(name); err != nil {
			t.Errorf("it is gone: %v", err)
		}
	}
}
