package network

import (
	"testing"

	"vmnet/testvm/lab"
)

// TestLabIsolated: guests of an isolated network do not reach each other, neither directly nor by
// the host, but the server, the host and the world.
func TestLabIsolated(t *testing.T) {
	lab.Inside(t)
	x := newHost(t)
	n := full().Network
	n.Isolated, n.Forwards = true, nil
	x.create(n)
	x.consistent()
	web, db := x.guest("lab", webMAC).lease(""), x.guest("lab", dbMAC).lease("")
	x.answers(web.ns, ":80")
	x.answers(x.wan, ":7")
	for _, on := range []string{"0", "1"} {
		x.bridgeNetfilter(on)
		x.drops("a guest", db.ns, "10.66.0.11:80")
		x.wants("the world", x.ask(db.ns, wanIP+":7"), hostIP)
		x.ip(db.ns, "route", "add", "10.66.0.11/32", "via", "10.66.0.1")
		x.drops("a guest by the host", db.ns, "10.66.0.11:80")
		x.ip(db.ns, "route", "del", "10.66.0.11/32")
		x.ip(db.ns, "addr", "flush", "dev", "eth0")
		db.lease("")
	}
	x.wants("the host", x.ask(x.host, "10.66.0.11:80"), "10.66.0.1")
}
