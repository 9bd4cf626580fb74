package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/internal/rundir"
	"vmnet/internal/testprogram"
)

// ipamName is the plugin that hands out addresses: this program under that name.
const ipamName = "test-ipam"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == ipamName {
		ipam()
		os.Exit(0)
	}
	leaktest.Main(m)
}

// ipam gives what its configuration says, and remembers in a directory to whom.
func ipam() {
	read := func(args *skel.CmdArgs) (dir string, result json.RawMessage) {
		var c struct {
			IPAM struct {
				Dir    string
				Result json.RawMessage
			}
		}
		if err := json.Unmarshal(args.StdinData, &c); err != nil {
			panic(err)
		}
		return c.IPAM.Dir, c.IPAM.Result
	}
	file := func(args *skel.CmdArgs) string {
		dir, _ := read(args)
		return filepath.Join(dir, args.ContainerID+"-"+args.IfName)
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: func(args *skel.CmdArgs) error {
			f, err := os.OpenFile(file(args), os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, result := read(args)
			_, err = os.Stdout.Write(result)
			return errors.Join(err, f.Close())
		},
		Del: func(args *skel.CmdArgs) error {
			if err := os.Remove(file(args)); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		},
		Check: func(args *skel.CmdArgs) error { _, err := os.Stat(file(args)); return err },
		GC: func(args *skel.CmdArgs) error {
			dir, _ := read(args)
			return os.WriteFile(filepath.Join(dir, "collected"), args.StdinData, 0o600)
		},
		Status: func(*skel.CmdArgs) error { return nil },
	}, version.All, "")
}

// host is a host with a bridge br0, a parent device eth0 and a runtime for containers.
type host struct {
	*testing.T
	ns      *netns.NS
	nl      *rtnl.Conn
	runtime *libcni.CNIConfig
	given   string // the directory of addresses that are taken
}

// here runs plugins in the host's network namespace.
type here struct {
	*invoke.RawExec
	version.PluginDecoder
	ns *netns.NS
}

func (h *here) ExecPlugin(ctx context.Context, path string, in []byte, env []string) (out []byte, err error) {
	entered := h.ns.Do(func() error {
		out, err = h.RawExec.ExecPlugin(ctx, path, in, env)
		return nil
	})
	if entered != nil {
		return nil, entered
	}
	return out, err
}

func newHost(t *testing.T) *host {
	t.Helper()
	nstest.RequireRoot(t)
	t.Cleanup(func() { _ = os.RemoveAll(rundir.System) }) // of this package's own /run
	h := &host{T: t, ns: nstest.New(t), given: t.TempDir()}
	h.nl = h.open(h.ns)
	h.must(h.nl.Create("bridge", rtnl.Name("br0"), rtnl.Up(true)))
	h.must(h.nl.Create("veth", rtnl.Name("eth0"), rtnl.Up(true), rtnl.VethPeer("far0", h.ns)))
	plugins := t.TempDir()
	testprogram.Install(t, filepath.Join(plugins, "vmnet-cni"), testprogram.Build(t, "vmnet/cmd/vmnet-cni"))
	self, err := os.Executable()
	h.must(err)
	h.must(os.Symlink(self, filepath.Join(plugins, ipamName)))
	h.runtime = libcni.NewCNIConfigWithCacheDir([]string{plugins}, t.TempDir(),
		&here{RawExec: &invoke.RawExec{Stderr: os.Stderr}, ns: h.ns})
	return h
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) open(ns *netns.NS) *rtnl.Conn {
	h.Helper()
	c, err := rtnl.Open(ns)
	h.must(err)
	h.Cleanup(c.Close)
	return c
}

// network is one whose interfaces lead to where the keys say.
func (h *host) network(name, keys, given string) *libcni.NetworkConfigList {
	h.Helper()
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":%q,"plugins":[
		{"type":"vmnet-cni",%s,"ipam":{"type":%q,"dir":%q,"result":{"cniVersion":"1.1.0",%s}}}]}`,
		name, keys, ipamName, h.given, given))
	h.must(err)
	return list
}

// pod is a container of which the runtime knows the namespace by a process.
func (h *host) pod(id string) (*libcni.RuntimeConf, *rtnl.Conn) {
	h.Helper()
	ns := nstest.New(h)
	cmd := exec.Command("sleep", "600")
	h.must(ns.Do(cmd.Start))
	h.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	path := fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	return &libcni.RuntimeConf{ContainerID: id, NetNS: path, IfName: "eth0"}, h.open(ns)
}

// taken lists the addresses that are taken.
func (h *host) taken() string {
	h.Helper()
	files, err := os.ReadDir(h.given)
	h.must(err)
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	return strings.Join(names, " ")
}

// links lists the links of a namespace.
func (h *host) links(nl *rtnl.Conn) string {
	h.Helper()
	all, err := nl.Links("", 0)
	h.must(err)
	var names []string
	for _, l := range all {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// code is that of a plugin's error; 0 for success.
func code(err error) uint {
	var has *types.Error
	if errors.As(err, &has) {
		return has.Code
	}
	if err != nil {
		return types.ErrUnknown + 12345
	}
	return 0
}

const address = `"ips":[{"address":"10.0.0.7/24","gateway":"10.0.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]`

// TestLivePod: a pod's interface is made, checked, found to differ, and removed, with its address.
func TestLivePod(t *testing.T) {
	h := newHost(t)
	before, ctx := h.links(h.nl), t.Context()
	for name, keys := range map[string]string{"veth": `"bridge":"br0","isolated":true`, "macvlan": `"macvlan":"eth0"`} {
		t.Run(name, func(t *testing.T) {
			list := h.network("pods", keys, address)
			rt, pod := h.pod("one")
			h.must(h.runtime.GetStatusNetworkList(ctx, list))
			done, err := h.runtime.AddNetworkList(ctx, list, rt)
			h.must(err)
			r, err := current.GetResult(done)
			h.must(err)
			end := r.Interfaces[len(r.Interfaces)-1]
			if end.Name != "eth0" || end.Sandbox != rt.NetNS || end.Mac == "" || len(r.IPs) != 1 ||
				r.IPs[0].Address.String() != "10.0.0.7/24" || r.Routes[0].GW.String() != "10.0.0.1" {
				t.Errorf("result %+v %v %v", end, r.IPs, r.Routes)
			}
			l, err := pod.Link("eth0")
			h.must(err)
			if l.MAC.String() != end.Mac || !l.Up {
				t.Errorf("the interface is %s, up %v; the result says %s", l.MAC, l.Up, end.Mac)
			}
			h.must(h.runtime.CheckNetworkList(ctx, list, rt))
			if _, err := h.runtime.AddNetworkList(ctx, list, rt); code(err) != 100 || h.taken() != "one-eth0" {
				t.Errorf("the same again: %v; taken: %s", err, h.taken())
			}
			h.must(h.runtime.CheckNetworkList(ctx, list, rt))
			addrs, err := pod.Addrs(l.Index)
			h.must(err)
			h.must(pod.DeleteAddr(l.Index, addrs[0]))
			if err := h.runtime.CheckNetworkList(ctx, list, rt); code(err) != 101 ||
				!strings.Contains(err.Error(), "10.0.0.7/24") {
				t.Errorf("without its address: %v", err)
			}
			for range 2 {
				h.must(h.runtime.DelNetworkList(ctx, list, rt))
			}
			if h.taken() != "" || h.links(pod) != "lo" || h.links(h.nl) != before {
				t.Errorf("left: %q, %s, %s", h.taken(), h.links(pod), h.links(h.nl))
			}
		})
	}
}

// TestLiveFailures: of an ADD that fails nothing is left, and its code says why.
func TestLiveFailures(t *testing.T) {
	h := newHost(t)
	before, ctx := h.links(h.nl), t.Context()
	rt, pod := h.pod("one")
	const one = `"ips":[{"address":"10.0.0.7/24"}],`
	for _, row := range []struct {
		keys, given string
		code        uint
		text        string
	}{
		{`"bridge":"br9"`, address, 999, "br9"},
		{`"brige":"br0"`, address, 6, `unknown field "brige"`},
		{`"bridge":"br0"`, `"ips":[]`, 999, "it gave no address"},
		{`"bridge":"br0"`, one + `"routes":[{"dst":"10.1.0.0/16","gw":"10.0.0.1"}]`, 7, "only default routes"},
		{`"bridge":"br0"`, one + `"routes":[{"dst":"0.0.0.0/0","gw":"10.9.0.1"}]`, 999, "route by 10.9.0.1"},
		{`"bridge":"br0","mtu":9000`, address, 999, "MTU 9000"},
	} {
		_, err := h.runtime.AddNetworkList(ctx, h.network("pods", row.keys, row.given), rt)
		if code(err) != row.code || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s %s: code %d, %v", row.keys, row.given, code(err), err)
		}
		if h.taken() != "" || h.links(pod) != "lo" || h.links(h.nl) != before {
			t.Errorf("%s %s: left: %q, %s, %s", row.keys, row.given, h.taken(), h.links(pod), h.links(h.nl))
		}
	}
	if err := h.runtime.GetStatusNetworkList(ctx, h.network("pods", `"bridge":"br9"`, address)); code(err) != 50 {
		t.Errorf("status without the bridge: %v", err)
	}
	rt.NetNS = "/nowhere"
	_, err := h.runtime.AddNetworkList(ctx, h.network("pods", `"bridge":"br0"`, address), rt)
	if err == nil || h.taken() != "" {
		t.Errorf("no namespace: %v, taken %q", err, h.taken())
	}
}

// TestLiveGarbage: a collection removes what the runtime has forgotten, of that network alone. A
// namespace that has ended has taken its interface along.
func TestLiveGarbage(t *testing.T) {
	h := newHost(t)
	before, ctx := h.links(h.nl), t.Context()
	list, other := h.network("pods", `"bridge":"br0"`, address), h.network("other", `"bridge":"br0"`, address)
	stay, stayNL := h.pod("stay")
	forgotten, forgottenNL := h.pod("forgotten")
	alien, alienNL := h.pod("alien")
	for rt, on := range map[*libcni.RuntimeConf]*libcni.NetworkConfigList{stay: list, forgotten: list, alien: other} {
		_, err := h.runtime.AddNetworkList(ctx, on, rt)
		h.must(err)
	}
	h.runtime = libcni.NewCNIConfigWithCacheDir(h.runtime.Path, t.TempDir(), // which remembers no pod
		&here{RawExec: &invoke.RawExec{Stderr: os.Stderr}, ns: h.ns})
	h.must(h.runtime.GCNetworkList(ctx, list, &libcni.GCArgs{
		ValidAttachments: []types.GCAttachment{{ContainerID: "stay", IfName: "eth0"}},
	}))
	if h.links(forgottenNL) != "lo" || h.links(stayNL) != "eth0 lo" || h.links(alienNL) != "eth0 lo" {
		t.Errorf("forgotten: %s; valid: %s; of another network: %s",
			h.links(forgottenNL), h.links(stayNL), h.links(alienNL))
	}
	if !strings.Contains(h.taken(), "collected") {
		t.Errorf("the ipam plugin was not told: %s", h.taken())
	}
	stay.NetNS = "/proc/1/nowhere"
	h.must(h.runtime.DelNetworkList(ctx, list, stay))
	alien.NetNS = ""
	h.must(h.runtime.DelNetworkList(ctx, other, alien))
	if h.links(h.nl) != before {
		t.Errorf("left: %s", h.links(h.nl))
	}
}

// TestLiveCommandLine: what a runtime asks first, and what a person sees.
func TestLiveCommandLine(t *testing.T) {
	h := newHost(t)
	info, err := h.runtime.GetVersionInfo(t.Context(), "vmnet-cni")
	h.must(err)
	if got := strings.Join(info.SupportedVersions(), " "); got != "0.3.0 0.3.1 0.4.0 1.0.0 1.1.0" {
		t.Errorf("versions %s", got)
	}
	program := filepath.Join(h.runtime.Path[0], "vmnet-cni")
	out, err := exec.Command(program, "--version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "vmnet-cni ") {
		t.Errorf("--version: %v, %s", err, out)
	}
	out, err = exec.Command(program, "add").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "vmnet-cni(8)") {
		t.Errorf("with an argument: %v, %s", err, out)
	}
}
