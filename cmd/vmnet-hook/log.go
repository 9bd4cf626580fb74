package main

import (
	"log/syslog"
	"time"
)

// logWait bounds the wait for a system log that does not read.
const logWait = 500 * time.Millisecond

// log writes to the system log, if there is one: libvirt keeps a hook's stderr only if the hook
// fails.
func log(text string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "vmnet-hook")
		if err != nil {
			return
		}
		defer w.Close()
		_ = w.Warning(text)
	}()
	select {
	case <-done:
	case <-time.After(logWait):
	}
}
