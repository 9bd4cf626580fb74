package tapmgr_test

import (
	"strings"
	"testing"
	"time"

	"vmnet/internal/libvirthook/declared"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveLibvirtSecurity: the frames of a libvirt guest are checked, and what is stored of its NIC
// says so for its next start; set changes both.
func TestLiveLibvirtSecurity(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.virt.NewGuest(h, testvm.Domain{Name: h.name("P2")})
	h.virt.Virsh("start", g.Name, "--paused")
	far := h.hearBridge()
	spec := secure(h.spec(g, "net0"))
	spec.Persistent = true
	h.attach(spec)
	h.frames(g.Name, far, "ipv4", "mac-spoof", "ip-spoof", "arp-spoof-ip")
	wants := func(declares bool) {
		t.Helper()
		for _, which := range []string{"--live", "--config"} {
			out := h.virt.Virsh("metadata", g.Name, declared.Namespace, which)
			if got := strings.Contains(out, `ip="`) && strings.Contains(out, `port-security="all"`); got != declares {
				t.Errorf("%s declares %s", which, out)
			}
		}
		if got := h.check(); len(got) != 0 {
			t.Errorf("check: %+v", got)
		}
	}
	wants(true)
	_, err := h.Set(h.context(20*time.Second), h.target(g), "net0", func(s nic.Spec) (nic.Spec, error) {
		s.Security, s.IP = nic.Security{}, nil
		return s, nil
	})
	if err != nil {
		t.Error(err)
	}
	wants(false)
}
