package policy

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"vmnet/internal/strictyaml"
)

// macRange is the range of addresses that share their first bits with addr.
type macRange struct {
	addr uint64
	bits int
}

const macBits = 48

func (d *decoder) macRange(n ast.Node) (macRange, error) {
	text, err := d.Text(n, "an address of macs")
	if err != nil {
		return macRange{}, err
	}
	addr, length, cut := strings.Cut(text, "/")
	r := macRange{bits: macBits}
	if cut {
		r.bits, err = strconv.Atoi(length)
	}
	mac, macErr := net.ParseMAC(addr)
	if err != nil || macErr != nil || len(mac) != 6 || r.bits < 0 || r.bits > macBits {
		return r, d.Errorf(strictyaml.TokenOf(n),
			"macs: %q: want six bytes and a prefix length, such as 52:54:00:00:00:00/24", text)
	}
	r.addr = number(mac)
	if r.addr != r.addr>>(macBits-r.bits)<<(macBits-r.bits) {
		return r, d.Errorf(strictyaml.TokenOf(n),
			"macs: %q: bits after the first %d are ignored (make them zero)", text, r.bits)
	}
	return r, nil
}

func number(mac net.HardwareAddr) (n uint64) {
	for _, b := range mac {
		n = n<<8 | uint64(b)
	}
	return n
}

func (r macRange) contains(mac net.HardwareAddr) bool {
	return (number(mac)^r.addr)>>(macBits-r.bits) == 0
}

func (r macRange) String() string {
	mac := make(net.HardwareAddr, 6)
	for i := range mac {
		mac[i] = byte(r.addr >> (macBits - 8*(i+1)))
	}
	if r.bits == macBits {
		return mac.String()
	}
	return fmt.Sprintf("%s/%d", mac, r.bits)
}
