package tapmgr

import (
	"errors"
	"strings"
	"testing"

	"vmnet/libvirt"
)

func TestExplainPlug(t *testing.T) {
	refusal := &libvirt.Error{Message: "internal error: No more available PCI slots"}
	got := explainPlug(refusal)
	if !errors.Is(got, refusal) || !strings.Contains(got.Error(), "pcie-root-port") {
		t.Errorf("got %v", got)
	}
	for _, err := range []error{nil, errors.New("No more available PCI slots"), &libvirt.Error{Message: "no"}} {
		if got := explainPlug(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}
