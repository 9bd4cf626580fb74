package qemu_test

import (
	"fmt"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt/domainxml"
)

// TestLiveQEMUsOf tells a domain's QEMU from a user's process that says to be that.
func TestLiveQEMUsOf(t *testing.T) {
	nstest.RequireRoot(t)
	const nobody, uuid = 65534, "5a5a11dd-4455-6677-8899-aabbccddeeff"
	pretender := func(uid uint32) int {
		t.Helper()
		cmd := exec.Command("/bin/sh")
		cmd.Args = []string{
			"qemu-system-x86_64", "-c", "read line", "-name", "guest=web", "-uuid", uuid,
			"-chardev", "socket,id=charmonitor,fd=3,server=on", "-mon", "chardev=charmonitor,mode=control",
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = stdin.Close()
			_ = cmd.Wait()
		})
		return cmd.Process.Pid
	}
	ofRoot, ofNobody := pretender(0), pretender(nobody)
	both := []int{ofRoot, ofNobody}
	for label, want := range map[string][]int{
		"": both, "+0:+0": {ofRoot}, fmt.Sprintf("+%d:+%[1]d", nobody): {ofNobody}, "+4242:+4242": both,
		"root:root": both,
	} {
		def, err := domainxml.Parse(fmt.Sprintf(`<domain type='qemu' id='1'><name>web</name><uuid>%s</uuid>
			<seclabel type='dynamic' model='apparmor'><label>+1:+1</label></seclabel><seclabel type='dynamic' model='dac'><label>%s</label></seclabel></domain>`, uuid, label))
		if err != nil {
			t.Fatal(err)
		}
		all, err := qemu.OfDomain(def.Name, def.UUID.String(), def.RunAs)
		var got []int
		for _, p := range all {
			got = append(got, p.PID)
		}
		slices.Sort(got)
		if err != nil || !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("label %q: processes %v, %v, want %v", label, got, err, want)
		}
	}
}
