package dhcp

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
)

// Upstream are the name servers of a resolv.conf(5).
type Upstream struct {
	Others   int          // how many are not on the host's loopback interface
	Loopback []netip.Addr // those on it, which a server in a namespace of its own does not reach
}

// maxResolvConf bounds a resolv.conf, in bytes.
const maxResolvConf = 1 << 16

// ReadUpstream reads the name servers of a resolv.conf.
func ReadUpstream(path string) (up Upstream, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return up, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	if err == nil && len(text) > maxResolvConf {
		err = fmt.Errorf("%s: it has more than %d bytes", path, maxResolvConf)
	}
	if err != nil {
		return up, err
	}
	return parseUpstream(string(text)), nil
}

func parseUpstream(text string) (up Upstream) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil || !a.Unmap().IsLoopback() {
			up.Others++
		} else if a = a.Unmap().WithZone(""); !slices.Contains(up.Loopback, a) {
			up.Loopback = append(up.Loopback, a)
		}
	}
	return up
}
