package nic

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"net"
	"strings"

	"vmnet/internal/stablemac"
)

const (
	hostMACByte = stablemac.HostMACByte

	maxName    = 15  // IFNAMSIZ less its NUL
	maxAltName = 127 // ALTIFNAMSIZ less its NUL
	hashLen    = 6
)

const (
	digits    = "0123456789"
	lowerCase = "abcdefghijklmnopqrstuvwxyz"
	letters   = lowerCase + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// formed reports whether s has 1 to most bytes, the first one from first and the others from first
// or more, which are ASCII. A regexp would cost time at every start of the program.
func formed(s string, most int, first, more string) bool {
	return s != "" && len(s) <= most && strings.Contains(first, s[:1]) && strings.Trim(s, first+more) == ""
}

// InterfaceName returns the name of a NIC's interface: <vm>-<nic> if the kernel accepts that, else
// a cleaned and shortened form with a hash of both. altName is then the full name, if it fits, and
// empty otherwise.
func InterfaceName(vm, nic string) (name, altName string) {
	full := vm + "-" + nic
	if formed(vm, maxName, letters+digits+"_", "-") && len(full) <= maxName {
		return full, ""
	}
	clean := strings.Trim(strings.Map(plainRune, vm), "-")
	clean = clean[:min(len(clean), maxName-1-hashLen)]
	name = strings.TrimLeft(strings.TrimRight(clean, "-")+"-"+shortHash(vm, nic), "-")
	if len(full) <= maxAltName && full != name {
		altName = full
	}
	return name, altName
}

// plainRune keeps what is safe in an interface name everywhere.
func plainRune(r rune) rune {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_':
		return r
	}
	return '-'
}

// shortHash hashes a list of texts; texts that only join alike give another hash.
func shortHash(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		h.Write([]byte(t))
		h.Write([]byte{0})
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)))[:hashLen]
}

// DefaultMAC returns the guest's address if the Spec has none: always the same on one machine, in
// the range that QEMU uses, 52:54:00.
func DefaultMAC(vm, nic string) net.HardwareAddr {
	return stablemac.New([]byte{0x52, 0x54, 0x00}, vm, nic)
}

// DeviceID returns the id of a NIC's QEMU device. The netdev's id and the getfd names derive from
// it (package qmp), since QMP lists neither.
func DeviceID(nic string) string { return "vmnet-" + nic }

// LibvirtAlias returns libvirt's alias, and so QEMU's id, of a NIC that was handed over by name.
// Libvirt accepts only aliases that begin with "ua-" (virDomainDeviceAliasIsUserAlias in
// src/conf/domain_conf.c).
func LibvirtAlias(nic string) string { return "ua-" + DeviceID(nic) }

// DeviceOf returns the id of the QEMU device of a NIC that was handed over in that way.
func DeviceOf(nic string, via Via) string {
	if via == ViaLibvirt {
		return LibvirtAlias(nic)
	}
	return DeviceID(nic)
}

// libvirtModels are the models that libvirt calls by other names than QEMU (virDomainNetModel in
// src/conf/domain_conf.c, qemuBuildVirtioDevProps in src/qemu/qemu_command.c).
var libvirtModels = map[string]string{
	"virtio-net-pci":                  "virtio",
	"virtio-net-pci-transitional":     "virtio-transitional",
	"virtio-net-pci-non-transitional": "virtio-non-transitional",
}

// LibvirtModel returns libvirt's name for a QEMU model.
func LibvirtModel(model string) string { return cmp.Or(libvirtModels[model], model) }

// ModelOf returns QEMU's name for a libvirt model.
func ModelOf(libvirtModel string) string {
	for qemu, libvirt := range libvirtModels {
		if libvirt == libvirtModel {
			return qemu
		}
	}
	return libvirtModel
}
