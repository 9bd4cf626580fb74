package tapmgr

import (
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

// formed tells whether s is of 1 to most bytes, the first one of first, the others
// of first or more. Both are ASCII. A regexp would cost every start of the program.
func formed(s string, most int, first, more string) bool {
	return s != "" && len(s) <= most && strings.Contains(first, s[:1]) && strings.Trim(s, first+more) == ""
}

// InterfaceName is the tap's name: <vm>-<nic> where the kernel takes that as it
// is, else a cleaned and shortened form with a hash of both. altName is then
// the full one, and empty otherwise.
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

// shortHash hashes texts so that no two lists of them are alike.
func shortHash(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		h.Write([]byte(t))
		h.Write([]byte{0})
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)))[:hashLen]
}

// DefaultMAC is the guest's address where none is asked for: the same each time
// on the same machine, in the range that QEMU uses, 52:54:00.
func DefaultMAC(vm, nic string) net.HardwareAddr {
	return stablemac.New([]byte{0x52, 0x54, 0x00}, vm, nic)
}

// deviceID is the QEMU device of a NIC. netdev id and getfd names derive from
// it (package qmp), since QMP lists neither.
func deviceID(nic string) string { return "vmnet-" + nic }

// domainAlias is libvirt's alias, and so QEMU's id, of a NIC that was handed over by name. Libvirt takes aliases
// from others only where they begin with "ua-" (virDomainDeviceAliasIsUserAlias in src/conf/domain_conf.c).
func domainAlias(nic string) string { return "ua-" + deviceID(nic) }

// deviceOf is the QEMU device of a NIC that was handed over in that way.
func deviceOf(nic string, via Via) string {
	if via == ViaLibvirt {
		return domainAlias(nic)
	}
	return deviceID(nic)
}
