package brport

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// A Protocols is a set of the group addresses 01:80:c2:00:00:00 to 0f. Bit N stands for the address
// with the last byte N. Link-local protocols use them (IEEE 802.1Q, table 8-1), and a bridge does
// not forward them by default. The set is a port's IFLA_BRPORT_GROUP_FWD_MASK
// on a kernel bridge (Linux 4.15).
type Protocols uint16

// pause is the address of pause frames (IEEE 802.3, annex 31B). They concern only one link, and
// the kernel's bridge never forwards them (br_handle_frame in net/bridge/br_input.c).
const pause = 0x01

// AllProtocols is the set of all protocols that can be forwarded.
const AllProtocols Protocols = 0xffff &^ (1 << pause)

// spanningTree is the address of BPDUs.
const spanningTree = 0x00

// protocolNames maps words to addresses. If an address has several, String writes the first.
var protocolNames = []struct {
	word    string
	address uint
}{
	{"stp", spanningTree},
	{"lacp", 0x02},  // the slow protocols: also OAM and synchronous Ethernet
	{"eapol", 0x03}, // 802.1X and MACsec key agreement
	{"elmi", 0x07},
	{"lldp", 0x0e},
	{"ptp", 0x0e}, // peer delay, and 802.1AS
}

// Has reports whether the set contains the address with that last byte.
func (p Protocols) Has(address byte) bool { return address < 16 && p&(1<<address) != 0 }

// ParseProtocols parses a comma-separated list such as "lldp,lacp". An item is a protocol's word,
// the last byte of an address as two hexadecimal digits ("0d"), or "all". The error matches
// ErrInvalid with errors.Is.
func ParseProtocols(list string) (Protocols, error) {
	var p Protocols
	for word := range strings.SplitSeq(list, ",") {
		set, err := parseProtocol(word)
		if err != nil {
			return 0, fmt.Errorf("%w port: forward %q: %w", ErrInvalid, list, err)
		}
		p |= set
	}
	return p, nil
}

func parseProtocol(word string) (Protocols, error) {
	if word == "all" {
		return AllProtocols, nil
	}
	var words []string
	for _, n := range protocolNames {
		if n.word == word {
			return 1 << n.address, nil
		}
		words = append(words, n.word)
	}
	address, err := strconv.ParseUint(word, 16, 8)
	switch {
	case word == "pause", err == nil && address == pause && len(word) == 2:
		return 0, errors.New("no bridge forwards pause frames (01:80:c2:00:00:01), which concern only one link " +
			"(turn flow control off at the sender: ethtool -A)")
	case err != nil, len(word) != 2, address > 0x0f:
		return 0, fmt.Errorf("%q: want %s, all, or the last byte of an address 01:80:c2:00:00:XX, 00 to 0f",
			word, strings.Join(words, ", "))
	}
	return 1 << address, nil
}

// String returns the list that ParseProtocols parses, or "" for the empty set.
func (p Protocols) String() string {
	if p == AllProtocols {
		return "all"
	}
	var words []string
	for p != 0 {
		address := uint(bits.TrailingZeros16(uint16(p)))
		p &^= 1 << address
		words = append(words, addressWord(address))
	}
	return strings.Join(words, ",")
}

func addressWord(address uint) string {
	for _, n := range protocolNames {
		if n.address == address {
			return n.word
		}
	}
	return fmt.Sprintf("%02x", address)
}

// MarshalText returns the list that String returns, which is the form in JSON as well.
func (p Protocols) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText parses what MarshalText returns.
func (p *Protocols) UnmarshalText(b []byte) (err error) {
	*p, err = ParseProtocols(string(b))
	return err
}
