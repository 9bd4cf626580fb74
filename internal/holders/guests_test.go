package holders

import "testing"

func TestIsLibvirts(t *testing.T) {
	for dir, want := range map[string]bool{
		"/var/lib/libvirt/qemu/domain-1-P2": true, "/run/libvirt/qemu/x": true,
		"/var/lib/libvirt": false, "/var/lib/libvirtd/qemu": false, "/home/eve/var/lib/libvirt/qemu": false, "/": false,
	} {
		if isLibvirts(dir) != want {
			t.Errorf("libvirt alone makes %s: %v", dir, !want)
		}
	}
}
