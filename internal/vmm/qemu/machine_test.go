package qemu_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/vmm/qemu"
)

func TestMachineOf(t *testing.T) {
	for line, want := range map[string]qemu.Machine{
		"qemu-system-x86_64":                                    {Type: "pc", Place: qemu.PlacePCI},
		"/usr/bin/qemu-system-i386 -m 64":                       {Type: "pc", Place: qemu.PlacePCI},
		"qemu-system-x86_64 -machine accel=kvm":                 {Type: "pc", Place: qemu.PlacePCI},
		"qemu-system-x86_64 -M pc-i440fx-7.2":                   {Type: "pc-i440fx-7.2", Place: qemu.PlacePCI},
		"qemu-system-x86_64 -machine q35":                       {Type: "q35", Place: qemu.PlacePCIe},
		"qemu-system-x86_64 --machine q35,accel=kvm":            {Type: "q35", Place: qemu.PlacePCIe},
		"qemu-system-x86_64 -machine accel=kvm,type=pc-q35-7.2": {Type: "pc-q35-7.2", Place: qemu.PlacePCIe},
		"qemu-system-x86_64 -M ubuntu-q35":                      {Type: "ubuntu-q35", Place: qemu.PlacePCIe},
		"qemu-system-x86_64 -M q35 -machine accel=kvm":          {Type: "q35", Place: qemu.PlacePCIe},
		"qemu-system-x86_64 -M q35 -machine pc":                 {Type: "pc", Place: qemu.PlacePCI},
		"qemu-system-x86_64 -M q35,type=pc":                     {Type: "pc", Place: qemu.PlacePCI},
		// not told from an option
		"qemu-system-x86_64 -append -M q35":                       {Type: "q35", Place: qemu.PlacePCIe},
		"qemu-system-x86_64 -name -M q35":                         {Type: "pc", Place: qemu.PlacePCI},
		"qemu-system-x86_64 -M":                                   {Type: "pc", Place: qemu.PlacePCI},
		"qemu-system-x86_64 -M microvm":                           {Type: "microvm", Place: qemu.PlaceMMIO},
		"qemu-system-x86_64 -M microvm,pcie=on":                   {Type: "microvm", Place: qemu.PlacePCIe},
		"qemu-system-x86_64 -M microvm,pcie=on -machine pcie=off": {Type: "microvm", Place: qemu.PlaceMMIO},
		"qemu-system-aarch64":                                     {Place: qemu.PlacePCI},
		"qemu-system-aarch64 -M virt,gic-version=3":               {Type: "virt", Place: qemu.PlacePCIe},
		"qemu-system-riscv64 -M virt-7.2":                         {Type: "virt-7.2", Place: qemu.PlacePCIe},
		"qemu-system-m68k -M virt":                                {Type: "virt", Place: qemu.PlaceMMIO},
		"qemu-system-aarch64 -M sbsa-ref":                         {Type: "sbsa-ref", Place: qemu.PlacePCI},
		"qemu-system-s390x -M s390-ccw-virtio":                    {Type: "s390-ccw-virtio", Place: qemu.PlaceCCW},
		"qemu-system-s390x -m 1G":                                 {Type: "s390-ccw-virtio", Place: qemu.PlaceCCW},
		"qemu-system-x86_64 -M isapc":                             {Type: "isapc", Place: qemu.PlaceISA},
		"qemu-system-ppc64 -M pseries-7.2":                        {Type: "pseries-7.2", Place: qemu.PlacePCI},
		"qemu-system-ppc -M virtex-ml507":                         {Type: "virtex-ml507", Place: qemu.PlaceNone},
		"qemu-system-aarch64 -M raspi3b":                          {Type: "raspi3b", Place: qemu.PlaceUSB},
		"qemu-system-arm -M vexpress-a15":                         {Type: "vexpress-a15", Place: qemu.PlaceMMIO},
		"qemu-system-arm -M versatilepb":                          {Type: "versatilepb", Place: qemu.PlacePCI},
		"qemu-system-arm -M microbit":                             {Type: "microbit", Place: qemu.PlaceNone},
		"qemu-system-arm -M romulus-bmc":                          {Type: "romulus-bmc", Place: qemu.PlaceUSB},
		"qemu-system-riscv64 -M sifive_u":                         {Type: "sifive_u", Place: qemu.PlaceNone},
		"qemu-system-riscv32":                                     {Type: "spike", Place: qemu.PlaceNone},
		"qemu-system-loongarch64":                                 {Type: "virt", Place: qemu.PlacePCIe},
		"qemu-system-sh4 -M r2d":                                  {Type: "r2d", Place: qemu.PlacePCI},
		"qemu-system-alpha":                                       {Type: "clipper", Place: qemu.PlacePCI},
		"qemu-system-avr -M uno":                                  {Type: "uno", Place: qemu.PlaceNone},
		"qemu-system-x86_64-microvm -M q35":                       {Type: "q35", Place: qemu.PlacePCIe},
		"crosvm run":                                              {Place: qemu.PlacePCI},
		"":                                                        {Place: qemu.PlacePCI},
	} {
		if diff := cmp.Diff(want, qemu.MachineOf(strings.Fields(line))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", line, diff)
		}
	}
	if got := qemu.MachineOf([]string{"kvm"}).Type; runtime.GOARCH == "amd64" && got != "pc" {
		t.Errorf("kvm has the machine %q", got)
	}
}

func TestReadTaken(t *testing.T) {
	got := qemu.ReadTaken(strings.Fields(`qemu-system-x86_64 -device pcie-root-port,id=port0,chassis=1 -device pci-bridge,chassis_nr=0x2,id=br
		-device {"driver":"pcie-root-port","id":"json","chassis":3} -device {broken -netdev user,id=n -device pcie-root-port,chassis=256 -object iothread,id=io`))
	want := qemu.Taken{
		IDs:     map[string]bool{"port0": true, "br": true, "json": true, "n": true, "io": true},
		Chassis: map[uint8]bool{1: true, 2: true, 3: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestIsQEMU(t *testing.T) {
	for program, want := range map[string]bool{
		"/usr/bin/qemu-system-x86_64": true, "qemu-kvm": true, "/usr/bin/kvm": true, "qemu": true,
		"qemu-img": false, "crosvm": false, "": false, "/opt/qemu-system-x86_64/run": false,
	} {
		if got := qemu.IsQEMU(program); got != want {
			t.Errorf("%q: %v", program, got)
		}
	}
}

func TestEscape(t *testing.T) {
	if got := qemu.Escape("a,b"); got != "a,,b" {
		t.Error(got)
	}
}

func FuzzMachine(f *testing.F) {
	f.Add("qemu-system-x86_64\x00-M\x00q35,pcie=on\x00-device\x00{\"id\":1,\"chassis\":7}")
	f.Fuzz(func(t *testing.T, line string) {
		argv := strings.Split(line, "\x00")
		m, taken := qemu.MachineOf(argv), qemu.ReadTaken(argv)
		if m.Place == "" || len(taken.IDs) > len(argv) {
			t.Errorf("%q: %v %v", line, m, taken)
		}
	})
}
