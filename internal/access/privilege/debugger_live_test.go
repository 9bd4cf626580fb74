package privilege

import (
	"fmt"
	"os"
	"testing"

	labhost "vmnet/testvm/lab"
)

// The caller can never access the memory of a process while one of its threads has a capability.
func TestLiveDebuggers(t *testing.T) { newLab(t).debuggers(t) }

// The same holds if fs.suid_dumpable admits debuggers to programs that have changed their ids.
func TestLabDebuggers(t *testing.T) {
	labhost.Inside(t)
	must(t, os.WriteFile("/proc/sys/fs/suid_dumpable", []byte("1"), 0))
	t.Cleanup(func() { _ = os.WriteFile("/proc/sys/fs/suid_dumpable", []byte("0"), 0) })
	newLab(t).debuggers(t)
}

// debuggers stops each kind of process at random moments.
func (l *lab) debuggers(t *testing.T) {
	for name, argv := range map[string][]string{
		"confined":         {l.setuid, "confine=net_admin", "drop"},
		"confined, file":   {l.ep, "confine=net_admin", "drop"},
		"kept":             {l.setuid, "threads=4", "keep=net_admin", "drop"},
		"dropped at once":  {l.setuid, "threads=4", "drop"},
		"handed over":      {l.setuid, "handover=" + l.plain + " net_admin+sys_admin threads=4 keep=net_admin drop"},
		"handed over, one": {l.ep, "handover=" + l.plain + " net_admin keep=net_admin drop"},
	} {
		t.Run(name, func(t *testing.T) {
			o := ok(t, start{path: l.plain}, append([]string{"attack"}, argv...)...)
			privileged, got := 0, 0
			if _, err := fmt.Sscan(o.lines["attack"][0], &privileged, &got); err != nil || privileged < 10 || got != 0 {
				t.Errorf("its memory was open %d of the %d times that it had a capability, %v", got, privileged, err)
			}
		})
	}
}
