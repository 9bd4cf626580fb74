package domainxml

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// UUID identifies a domain.
type UUID [16]byte

// ParseUUID reads the usual form: 36 characters, hexadecimal digits in either case.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	digits := strings.ReplaceAll(s, "-", "")
	if len(s) == 36 && len(digits) == 2*len(u) {
		if _, err := hex.Decode(u[:], []byte(digits)); err == nil && u.String() == strings.ToLower(s) {
			return u, nil
		}
	}
	return UUID{}, fmt.Errorf("UUID %.120q: want 8-4-4-4-12 hex digits", s)
}

// String returns the UUID as libvirt writes it: 8-4-4-4-12 hex digits.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
