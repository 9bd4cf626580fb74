// Package stablemac derives Ethernet addresses that stay the same on one
// machine and differ between machines.
package stablemac

import (
	"bytes"
	"crypto/sha256"
	"net"
	"os"
)

// machineIDFile tells hosts apart, see machine-id(5).
const machineIDFile = "/etc/machine-id"

// New returns the address that begins with prefix (1 to 5 bytes) and is filled up from
// a hash of the machine's id and the texts. Without a machine id, two such hosts get equal
// addresses for equal texts.
func New(prefix []byte, texts ...string) net.HardwareAddr {
	id, _ := os.ReadFile(machineIDFile)
	h := sha256.New()
	for _, t := range append([]string{string(bytes.TrimSpace(id))}, texts...) {
		h.Write([]byte(t))
		h.Write([]byte{0}) // so that no two lists of texts are alike
	}
	return append(bytes.Clone(prefix), h.Sum(nil)[:6-len(prefix)]...)
}
