package nic

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestGuestConfig: the configuration of a routed guest, as YAML for programs and in lines for
// people; other NICs have none.
func TestGuestConfig(t *testing.T) {
	n := NIC{Type: TypeRouted, MAC: "52:54:00:01:02:03", IP: ips("192.0.2.11", "2001:db8::11")}
	c := n.GuestConfig()
	if c == nil {
		t.Fatal("none")
	}
	const cloudInit = `version: 2
ethernets:
  lan:
    match: {macaddress: "52:54:00:01:02:03"}
    addresses: ["192.0.2.11/32", "2001:db8::11/128"]
    routes:
      - {to: "0.0.0.0/0", via: "169.254.0.1", on-link: true}
      - {to: "::/0", via: "fe80::1", on-link: true}
`
	if diff := cmp.Diff(cloudInit, c.CloudInit); diff != "" {
		t.Error(diff)
	}
	text, err := json.Marshal(c.Gateways)
	if err != nil || string(text) != `["169.254.0.1","fe80::1"]` {
		t.Errorf("%s, %v", text, err)
	}
	n.IP = ips("192.0.2.11")
	const lines = "In the guest: address 192.0.2.11/32; default route on link via 169.254.0.1. " +
		`As cloud-init's network-config:
  version: 2
  ethernets:
    lan:
      match: {macaddress: "52:54:00:01:02:03"}
      addresses: ["192.0.2.11/32"]
      routes:
        - {to: "0.0.0.0/0", via: "169.254.0.1", on-link: true}`
	if diff := cmp.Diff(lines, n.GuestConfig().String()); diff != "" {
		t.Error(diff)
	}
	n.Type = TypeTap
	if n.GuestConfig() != nil {
		t.Error("a NIC on a bridge has one")
	}
}

// TestRouted: what a routed NIC needs and cannot have, and its record.
func TestRouted(t *testing.T) {
	spec := Spec{Target: Target{VM: "P2"}, Routed: "eth0", IP: ips("192.0.2.11", "2001:db8::11")}
	if err := spec.Validate(); err != nil || spec.Source() != "eth0" || spec.WithSource("up0").Routed != "up0" {
		t.Errorf("%v, %q, %+v", err, spec.Source(), spec.WithSource("up0"))
	}
	r := Record{
		VM: "P2", NIC: "net0", Type: TypeRouted, Source: "eth0", IP: spec.IP, At: 2, MAC: DefaultMAC("P2", "net0"),
		Model: DefaultModel, Queues: 1,
	}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := ParseRecord(text); !ok || cmp.Diff(r, got,
		sameIP) != "" {
		t.Errorf("%q is read as %+v, %v", text, got, ok)
	}
	r.IP = nil
	if text, err = r.Encode(); err != nil {
		t.Fatal(err)
	}
	if got, ok := ParseRecord(text); ok {
		t.Errorf("without an address it is read as %+v", got)
	}
}
