// Package alias is the grammar of the aliases that vmnet stores with its links (IFLA_IFALIAS): a
// prefix, and fields key=value between single spaces, whose values are percent-encoded.
package alias

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Prefix begins the alias of every managed link.
const Prefix = "vmnet "

// Max is the longest alias that the kernel accepts, in bytes (IFALIASZ of include/uapi/linux/if.h
// less its NUL).
const Max = 255

// Field parses one key=value.
func Field(field string) (key, value string, err error) {
	key, raw, _ := strings.Cut(field, "=")
	value, err = url.PathUnescape(raw)
	return key, value, err
}

// Escape percent-encodes the characters that would add fields to the alias or control a terminal.
func Escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '%' || c == 0x7f {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Owner returns the uid for which a privileged helper has made the link, or put it on a bridge. ok
// is false if the alias is not vmnet's, or names no owner.
func Owner(alias string) (uid int, ok bool) {
	rest, ok := strings.CutPrefix(alias, Prefix)
	if !ok {
		return 0, false
	}
	for field := range strings.SplitSeq(rest, " ") {
		key, value, err := Field(field)
		if err == nil && key == "uid" {
			uid, err = strconv.Atoi(value)
			return uid, err == nil
		}
	}
	return 0, false
}
