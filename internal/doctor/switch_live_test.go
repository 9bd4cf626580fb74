package doctor

import (
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

func TestLivePacketPorts(t *testing.T) {
	m := Machine{NS: nstest.New(t)}
	if got := m.packetPorts(); len(got) != 1 || got[0].Status != OK ||
		!strings.Contains(got[0].Text, "can have network cards") {
		t.Errorf("%+v", got)
	}
	found := make(chan []Check)
	go func() {
		runtime.LockOSThread() // which ends with the goroutine
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			t.Error(errno)
		}
		found <- Machine{}.packetPorts()
	}()
	if got := <-found; len(got) != 1 || got[0].Status != OK || !strings.Contains(got[0].Text, "run this as root") {
		t.Errorf("without privilege: %+v", got)
	}
}
