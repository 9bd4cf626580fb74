package guest

import (
	"errors"
	"strings"
	"testing"

	"vmnet/libvirt"
)

// TestExplainRefusal: refusals in the words of libvirt 9.0 get an explanation and a cure, and stay
// the same errors.
func TestExplainRefusal(t *testing.T) {
	for _, tc := range []struct{ message, want string }{
		{"internal error: No more available PCI slots", "pcie-root-port"},
		{
			"internal error: unable to execute QEMU command 'device_add': Bus 'pcie.0' does not support hotplugging",
			"PCI Express root ports",
		},
		{"unsupported configuration: vhost-net was requested for an interface, but is unavailable", "--vhost off"},
		{
			"Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatch)",
			"virsh domjobinfo",
		},
		{
			"internal error: unable to execute QEMU command 'device_add': device_add not allowed while migrating",
			"is being migrated or saved",
		},
		{"Unable to open /dev/net/tun, is tun module loaded?: No such file or directory", "modprobe tun"},
		{"Unable to open /dev/tap7: Too many open files", "LimitNOFILE="},
		{"operation forbidden for read only access", "group libvirt"},
		{"access denied by policy", "polkit"},
	} {
		refusal := &libvirt.Error{Message: tc.message}
		if got := explainRefusal(refusal); !errors.Is(got, refusal) || !strings.Contains(got.Error(), tc.want) ||
			!strings.Contains(got.Error(), tc.message) {
			t.Errorf("%s became %v, want %s", tc.message, got, tc.want)
		}
	}
	foreign := errors.New("of another program: No more available PCI slots")
	for _, err := range []error{nil, foreign, &libvirt.Error{Message: "no"}} {
		if got := explainRefusal(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}
