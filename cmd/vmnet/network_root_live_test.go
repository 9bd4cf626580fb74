package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/testvm"
	"vmnet/testvm/agent"
)

// dhclientScript does with a lease what Debian's dhclient-script does, by busybox.
const dhclientScript = `#!/bin/sh
case $reason in
BOUND | RENEW | REBIND | REBOOT)
	ip addr replace "$new_ip_address/$new_subnet_mask" dev "$interface"
	for r in $new_routers; do ip route replace default via "$r" dev "$interface"; done
	for s in $new_domain_name_servers; do echo "nameserver $s"; done >/etc/resolv.conf
	[ -z "$new_domain_name" ] || echo "search $new_domain_name" >>/etc/resolv.conf
	;;
EXPIRE | FAIL | RELEASE | STOP) ip addr flush dev "$interface" scope global ;;
esac
exit 0
`

// dhclientConf asks for what cloud images ask for, as a client with an id of its own (a DUID), by
// which many of them are known to servers, instead of the MAC.
const dhclientConf = `timeout 60;
retry 2;
send host-name "%s";
send dhcp-client-identifier ff:11:22:33:44:00:02:00:00:ab:11:01:02:03:04:05:06:07:08;
request subnet-mask, broadcast-address, time-offset, routers, domain-name, domain-name-servers,
	domain-search, host-name, interface-mtu, rfc3442-classless-static-routes, ntp-servers;
`

// installs writes a program of this machine into a guest.
func (h *userHost) installs(g *testvm.VM, from, to string) {
	h.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		h.Fatal(err)
	}
	h.puts(g, to, content)
}

func (h *userHost) puts(g *testvm.VM, to string, content []byte) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), nstest.Patience(2*time.Minute))
	defer cancel()
	const chunk = 768 << 10
	for i := 0; i < len(content); i += chunk {
		out, err := g.Guest.Run(ctx, agent.Command{
			Argv:  []string{"sh", "-c", `mkdir -p "${0%/*}" && base64 -d >>"$0" && chmod 755 "$0"`, to},
			Stdin: base64.StdEncoding.EncodeToString(content[i:min(i+chunk, len(content))]),
		})
		if err != nil || out.Code != 0 {
			h.Fatalf("%s: %v %+v", to, err, out)
		}
	}
}

// dhclient has a guest ask for an address as a cloud image of Debian does.
func (h *userHost) dhclient(g *testvm.VM, name string) {
	h.Helper()
	const program = "/sbin/dhclient"
	_, err := os.Stat(program)
	nstest.Require(h, "dhclient", err == nil, "apt install isc-dhcp-client")
	h.installs(g, program, program)
	for _, lib := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"} {
		h.installs(g, lib, lib)
	}
	h.puts(g, "/dhcp/script", []byte(dhclientScript))
	h.puts(g, "/dhcp/conf", fmt.Appendf(nil, dhclientConf, name))
	ctx, cancel := context.WithTimeout(h.Context(), nstest.Patience(2*time.Minute))
	defer cancel()
	out, err := g.Guest.Run(ctx, agent.Command{Argv: []string{
		"sh", "-c", "until ip link set eth0 up 2>/dev/null; do sleep 0.1; done; exec " + program +
			" -4 -1 -v -cf /dhcp/conf -sf /dhcp/script -lf /dhcp/leases -pf /dhcp/pid eth0",
	}})
	if err != nil || out.Code != 0 {
		h.Fatalf("dhclient: %v %+v", err, out)
	}
}

// TestLiveRootNetwork: two guests on root's network, one with udhcpc and one with the DHCP client
// of cloud images, have addresses and names, reach each other and the world by IPv4 and IPv6, and
// are reached from there by a forward; nothing is left of the network.
func TestLiveRootNetwork(t *testing.T) {
	h := newUserHost(t)
	dirs := []string{"--config-dir", h.home + "/networks.d", "--state-dir", h.home + "/state"}
	root := func(want string, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
		defer cancel()
		out, err := h.run(h.rootCommand(ctx, append([]string{"vmnet"}, args...)...))
		if err != nil || !strings.Contains(out, want) {
			t.Fatalf("vmnet %s lacks %q: %v: %s", strings.Join(args, " "), want, err, out)
		}
		return out
	}
	network := func(want string, args ...string) string { t.Helper(); return root(want, append(args, dirs...)...) }
	if err := errors.Join(os.Chmod(h.home, 0o755), os.Mkdir(h.home+"/state", 0o755)); err != nil {
		t.Fatal(err)
	}
	network("network lab created: bridge lab", createLab...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, _ = h.run(h.rootCommand(ctx, append([]string{"vmnet", "network", "delete", "lab", "--force"}, dirs...)...))
	})
	guest := func() (*testvm.VM, string) {
		name := uniqueVM()
		return testvm.StartT(t, testvm.Config{Name: name, QEMU: qemuProgram, Netns: h.ns.Path()}), name
	}
	red, redName := guest()
	cloud, cloudName := guest()
	root(redName+"-net0", "attach", "--vm", redName, "--network", "lab")
	root(cloudName+"-net0", "attach", "--vm", cloudName, "--network", "lab")
	h.lease(red, "red")
	h.dhclient(cloud, "cloud")
	var leases []struct{ IP, Guest string }
	out := network("10.66.0.", "network", "leases", "lab", "-o", "json")
	if err := json.Unmarshal([]byte(out), &leases); err != nil || len(leases) != 2 {
		t.Fatalf("leases %v: %s", err, out)
	}
	ip := map[string]string{leases[0].Guest: leases[0].IP, leases[1].Guest: leases[1].IP}
	redIP, cloudIP := ip[redName+"/net0"], ip[cloudName+"/net0"]
	if redIP == "" || cloudIP == "" {
		t.Fatalf("leases: %s", out)
	}
	h.says(cloud, cloudIP+"/24", "ip", "-4", "addr", "show", "dev", "eth0")

	// The names of guests win over those that their DHCP clients send.
	h.says(red, cloudIP, "nslookup", "-type=a", strings.ToLower(cloudName)+".lab.internal")
	h.says(cloud, redIP, "nslookup", "-type=a", strings.ToLower(redName)+".lab.internal")
	h.says(red, "3 packets received", "ping", "-c", "3", "-w", "20", strings.ToLower(cloudName))
	for _, g := range []*testvm.VM{red, cloud} {
		h.connects(g, world4, "80", "seen from "+userHost4)
		h.connects(g, world6, "80", "seen from "+userHost6)
	}
	h.says(cloud, "", "sh", "-c",
		`printf '#!/bin/sh\necho cloud\n' >/cloud; chmod +x /cloud; nc -ll -p 80 -e /cloud >/dev/null 2>&1 &`)
	network("added", "forward", "add", "lab", "tcp:8080", strings.ToLower(cloudName)+":80")
	nstest.Eventually(t, patience, "cloud answers outside", func() bool {
		return dialIn(h.world, userHost4+":8080") == "cloud"
	})
	h.connects(red, userHost4, "8080", "cloud")
	network("no difference", "network", "check")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := h.run(h.rootCommand(ctx, append([]string{"vmnet", "network", "delete", "lab"}, dirs...)...))
	if err == nil || !strings.Contains(out, redName+"/net0") {
		t.Errorf("delete with guests: %v: %s", err, out)
	}
	network("deleted", "network", "delete", "lab", "--force")
	for _, left := range []string{"lab", "lab-srv"} {
		if _, err := nstest.Handle(t, h.ns).LinkByName(left); err == nil {
			t.Errorf("%s is left", left)
		}
	}
}
