package qmp

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestLivePlaces: QEMUs of all architectures that have NICs say where one can be plugged, and take
// it there.
func TestLivePlaces(t *testing.T) {
	const port = "-device pcie-root-port,id=port0,chassis=1"
	for _, tc := range []struct {
		arch, args string
		model      string // empty: the best one
		want       Port
		text       string // of the error
	}{
		{"s390x", "-M s390-ccw-virtio", "", Port{}, ""},
		{"s390x", "-M s390-ccw-virtio", "virtio-net", Port{}, ""},
		{"s390x", "-M s390-ccw-virtio", "virtio-net-pci", Port{Bus: "pci.0"}, ""},
		{"ppc64", "-M pseries", "", Port{Bus: "pci.0"}, ""},
		{"ppc64", "-M pseries", "e1000", Port{Bus: "pci.0"}, ""},
		{"ppc64", "-M pseries", "spapr-vlan", Port{}, "pSeries' bus of virtual devices"},
		{"ppc64", "-M pseries -device qemu-xhci", "usb-net", Port{}, ""},
		{"aarch64", "-M virt -cpu cortex-a57 " + port, "", Port{Bus: "port0"}, ""},
		{"aarch64", "-M virt -cpu cortex-a57", "", Port{}, "-device pcie-root-port,id=port0"},
		{"aarch64", "-M virt -cpu cortex-a57", "virtio-net-device", Port{}, "virtio-mmio transport"},
		{"aarch64", "-M virt -cpu cortex-a57 -device qemu-xhci", "usb-net", Port{}, ""},
		{"aarch64", "-M raspi3b", "", Port{}, "--model usb-net"},
		{"aarch64", "-M raspi3b", "usb-net", Port{}, ""},
		{"aarch64", "-M raspi3b", "lan9118", Port{}, "the board, which has its own"},
		{"arm", "-M virt " + port, "", Port{Bus: "port0"}, ""},
		{"riscv64", "-M virt -bios none " + port, "", Port{Bus: "port0"}, ""},
		{"loongarch64", "-M virt -m 1G " + port, "", Port{Bus: "port0"}, ""},
		{"m68k", "-M virt", "", Port{}, "virtio-mmio transport"},
		{"x86_64", "-M microvm,pcie=on " + port, "", Port{Bus: "port0"}, ""},
		{"x86_64", "-M microvm", "", Port{}, "no PCI bus"},
		{"x86_64", "-M pc", "ne2k_isa", Port{}, "ISA bus"},
		{"x86_64", "-M pc", "virtio-net", Port{Bus: "pci.0"}, ""},
		{"x86_64", "-M pc", "virtio-net-turbo", Port{}, `no device "virtio-net-turbo"`},
		{"x86_64", "-M pc -usb", "usb-net", Port{}, ""},
		{"x86_64", "-M q35 " + port, "e1000-82540em", Port{Bus: "port0"}, ""},
	} {
		t.Run(tc.arch+" "+tc.args+" "+tc.model, func(t *testing.T) {
			c := startQEMUOf(t, tc.arch, strings.Fields(tc.args)...).dial(t)
			ctx := within(t, 30*time.Second)
			n := NIC{ID: "n", Model: tc.model}
			var err error
			if n.Model == "" {
				if n.Model, err = c.BestModel(ctx); err != nil {
					t.Fatal(err)
				}
			}
			place, err := c.FreePortFor(ctx, n.Model)
			if tc.text != "" {
				if err == nil || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("got %+v, %v; want %q", place, err, tc.text)
				}
				return
			}
			if err != nil || place != tc.want {
				t.Fatalf("got %+v, %v; want %+v", place, err, tc.want)
			}
			n.Bus, n.Addr = place.Bus, place.Addr
			args := n.deviceArgs() // the proof: QEMU takes it there
			delete(args, "netdev")
			if err := c.DeviceAdd(ctx, args); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLiveModels: all models of NICs on PCI go into a port as into a slot.
func TestLiveModels(t *testing.T) {
	models := strings.Fields(
		"e1000 e1000e rtl8139 vmxnet3 pcnet tulip i82559c ne2k_pci virtio-net-pci virtio-net-pci-transitional virtio-net-pci-non-transitional")
	for _, machine := range []string{"pc", "q35"} {
		var args []string
		for i := range models {
			args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=port%d,chassis=%[1]d", i+1))
		}
		if machine == "pc" {
			args = nil
		}
		c := startQEMU(t, machine, args...).dial(t)
		ctx := within(t, 60*time.Second)
		for i, model := range models {
			place, err := c.FreePortFor(ctx, model)
			if err != nil {
				t.Fatalf("%s, %s: %v", machine, model, err)
			}
			n := NIC{ID: string(rune('a' + i)), Model: model, Bus: place.Bus, Addr: place.Addr}
			props := n.deviceArgs()
			delete(props, "netdev")
			if err := c.DeviceAdd(ctx, props); err != nil {
				t.Errorf("%s, %s at %+v: %v", machine, model, place, err)
			}
		}
	}
}

// TestLiveRefusalsWithACure: what QEMU words for its developers comes with what helps.
func TestLiveRefusalsWithACure(t *testing.T) {
	c := startQEMU(t, "pc").dial(t)
	ctx := within(t, 30*time.Second)
	for model, want := range map[string]string{
		"usb-net": "-device qemu-xhci", "virtio-net-turbo": "has no such --model",
	} {
		err := c.DeviceAdd(ctx, map[string]any{"driver": model, "id": "n"})
		if !refused(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", model, err, want)
		}
	}
	err := c.DeviceAdd(ctx, map[string]any{"driver": "virtio-net-pci", "id": "n", "romfile": "none.rom"})
	if !lacksROM(err) || !strings.Contains(err.Error(), "--device-opt romfile=") {
		t.Errorf("a ROM that is not there: %v", err)
	}
	if _, err := c.FreePortFor(ctx, "usb-net"); err != nil { // which QEMU decides
		t.Error(err)
	}
	if _, err := c.FreePortFor(ctx, "ne2k_isa"); !errors.Is(err, ErrNoPort) {
		t.Error(err)
	}
}
