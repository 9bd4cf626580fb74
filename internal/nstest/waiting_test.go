package nstest

import (
	"os"
	"testing"
	"time"
)

func waitsForChannel(c chan struct{}) { <-c }

func waitsForFile(f *os.File, done chan struct{}) {
	_, _ = f.Read(make([]byte, 1))
	close(done)
}

func TestWaiting(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, done := make(chan struct{}), make(chan struct{})
	go waitsForChannel(c)
	go waitsForChannel(c)
	go waitsForFile(r, done)
	for what, want := range map[string]int{"waitsForChannel": 2, "waitsForFile": 1, "waitsFor": 0} {
		Eventually(t, 20*time.Second, what, func() bool { return Waiting("internal/nstest."+what) == want })
	}
	close(c)
	w.Close()
	<-done
	for _, what := range []string{"waitsForChannel", "waitsForFile"} {
		Eventually(t, 20*time.Second, what+" ends", func() bool { return Waiting("internal/nstest."+what) == 0 })
	}
}

func TestWaitsIn(t *testing.T) {
	const calls = "os.read(0x1)\n\tfile.go:1 +0x1\nvmnet/qmp.(*Conn).await(0x1)\n\tconn.go:1\nvmnet/qmp.(*Conn).Name(...)\n\tconn.go:2\n"
	for _, test := range []struct {
		head, fn string
		want     bool
	}{
		{"goroutine 7 [select]:", "qmp.(*Conn).await", true},
		{"goroutine 7 [select, 2 minutes, locked to thread]:", "qmp.(*Conn).await", true},
		{"goroutine 7 gp=0x1 m=nil [IO wait]:", "qmp.(*Conn).await", true},
		{"goroutine 7 [select]:", "qmp.(*Conn).Name", false},
		{"goroutine 7 [select]:", "qmp.(*Conn).awa", false},
		{"goroutine 7 [running]:", "qmp.(*Conn).await", false},
		{"goroutine 7 [sync.Mutex.Lock]:", "qmp.(*Conn).await", false},
	} {
		if got := waitsIn(test.head+"\n"+calls, test.fn); got != test.want {
			t.Errorf("%s in %s: %v", test.head, test.fn, got)
		}
	}
}
