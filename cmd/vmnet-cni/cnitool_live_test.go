package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
)

// tool is cnitool of containernetworking/cni, with a network of each version of the specification.
type tool struct {
	*host
	program, nets string
}

func newTool(t *testing.T) *tool {
	t.Helper()
	const state = "/var/lib" // where cnitool remembers results, of this package's own mount namespace here
	if err := unix.Mount("tmpfs", state, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := &tool{host: newHost(t), program: filepath.Join(t.TempDir(), "cnitool"), nets: t.TempDir()}
	testprogram.Install(t, c.program, testprogram.Build(t, "github.com/containernetworking/cni/cnitool"))
	return c
}

// net writes the list of a network.
func (c *tool) net(version, keys string) (name string) {
	c.Helper()
	name = "net" + strings.ReplaceAll(version, ".", "")
	text := fmt.Appendf(nil, `{"cniVersion":%q,"name":%q,"plugins":[
		{"type":"vmnet-cni",%s,"ipam":{"type":%q,"dir":%q,"result":{"cniVersion":%q,%s}}}]}`,
		version, name, keys, ipamName, c.given, version, resultOf(version))
	c.must(os.WriteFile(filepath.Join(c.nets, name+".conflist"), text, 0o600))
	return name
}

// resultOf is what the plugin that hands out addresses says, which names the IP version before
// 1.0.0.
func resultOf(version string) string {
	if strings.HasPrefix(version, "0.") {
		return strings.Replace(address, `"address"`, `"version":"4","address"`, 1)
	}
	return address
}

// run runs a command of cnitool in the host's namespace.
func (c *tool) run(command, network, pod string) (string, error) {
	c.Helper()
	cmd := testprogram.Command("/", []string{
		"CNI_PATH=" + c.runtime.Path[0], "NETCONFPATH=" + c.nets, "CNI_IFNAME=eth0",
	}, c.program, command, network, pod)
	var out []byte
	var err error
	c.must(c.ns.Do(func() error {
		out, err = cmd.CombinedOutput()
		return nil
	}))
	return string(out), err
}

// TestLiveCnitool: all commands of each version of the specification, by the project's own tool.
func TestLiveCnitool(t *testing.T) {
	nstest.RequireRoot(t)
	c := newTool(t)
	before := c.links(c.nl)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		name := c.net(version, `"bridge":"br0"`)
		rt, pod := c.pod(name)
		out, err := c.run("add", name, rt.NetNS)
		var result struct {
			CNIVersion string
			IPs        []struct{ Address string }
		}
		if err != nil || json.Unmarshal([]byte(out), &result) != nil || result.CNIVersion != version ||
			len(result.IPs) != 1 || result.IPs[0].Address != "10.0.0.7/24" {
			t.Errorf("%s: add: %v, %s", version, err, out)
		}
		if l, err := pod.Link("eth0"); err != nil || !l.Up {
			t.Errorf("%s: the pod's interface: %+v, %v", version, l, err)
		}
		for command, since := range map[string]string{"check": "0.4.0", "status": "1.1.0"} {
			if version < since { // the runtime asks no plugin
				continue
			}
			if out, err := c.run(command, name, rt.NetNS); err != nil {
				t.Errorf("%s: %s: %v, %s", version, command, err, out)
			}
		}
		if version == "1.1.0" {
			c.collected(name, rt.NetNS)
		}
		for range 2 { // a removal is success where nothing is left
			if out, err := c.run("del", name, rt.NetNS); err != nil {
				t.Errorf("%s: del: %v, %s", version, err, out)
			}
		}
		if c.links(pod) != "lo" || c.links(c.nl) != before {
			t.Errorf("%s: left: %s, %s", version, c.links(pod), c.links(c.nl))
		}
	}
}

// collected demands that a collection, which cnitool asks for without a valid attachment, removes
// the pod's interface, and that a check misses it then.
func (c *tool) collected(name, pod string) {
	c.Helper()
	out, err := c.run("gc", name, pod)
	if err != nil {
		c.Errorf("gc: %v, %s", err, out)
	}
	ns, err := netns.Open(pod)
	c.must(err)
	defer ns.Close()
	if nl := c.open(ns); c.links(nl) != "lo" {
		c.Errorf("after gc: %s", c.links(nl))
	}
	if out, err := c.run("check", name, pod); err == nil {
		c.Errorf("a check of what is gone: %s", out)
	}
}

// TestLiveCnitoolFailures: what a person sees of a network that is not there.
func TestLiveCnitoolFailures(t *testing.T) {
	nstest.RequireRoot(t)
	c := newTool(t)
	name := c.net("1.1.0", `"bridge":"br9"`)
	rt, pod := c.pod("one")
	for _, command := range []string{"status", "add"} {
		if out, err := c.run(command, name, rt.NetNS); err == nil || !strings.Contains(out, "br9") {
			t.Errorf("%s: %v, %s", command, err, out)
		}
	}
	if out, err := c.run("del", name, rt.NetNS); err != nil || c.links(pod) != "lo" || c.taken() != "" {
		t.Errorf("del: %v, %s; left %s, %s", err, out, c.links(pod), c.taken())
	}
}
