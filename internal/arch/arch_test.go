package arch

import (
	"go/types"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// layers are the packages from top to bottom; packages of one layer do not import each other.
var layers = [][]string{
	{"cmd/vmnet", "cmd/qemu-netup", "cmd/qemu-netup-full", "cmd/vmnet-hook", "cmd/vmnet-cni"},
	{
		"internal/cni", "internal/libvirthook/hook", "internal/watch", "internal/doctor", "internal/metrics",
		"internal/netmap",
		"internal/monitor", "internal/top", "internal/why",
	},
	{"internal/network/usernet"},
	{"internal/access/bridgehelper"},
	{"internal/access/gate", "internal/declare"},
	{"tapmgr", "internal/network"},
	{"internal/change"},
	{"internal/guest"},
	{"internal/guestfile"},
	{"internal/libvirthook/declared", "internal/network/userdirs"},
	{"internal/cli/nicflags"},
	{"internal/vmm/launch", "internal/hostaccess", "internal/nsport", "internal/routed/obstacles"},
	{"internal/access/bridgeconf", "internal/access/policy"},
	{"internal/backend"},
	{"internal/policing", "internal/addresses"},
	{"internal/inventory"},
	{"internal/switches"},
	{"internal/network/roster", "internal/holders"},
	{"tapmgr/nic"},
	{"bridge/vswitch/control/server"},
	{"bridge/vswitch/control", "bridge/vswitch/pcapng", "bridge/vswitch"},
	{"bridge/vswitch/capture", "internal/endpoint"},
	{"bridge/vswitch/vport"},
	{
		"bridge", "macvtap", "internal/access/plaintap", "qmp/goqemu", "internal/network/server",
		"internal/network/uplink", "internal/network/managers",
	},
	{
		"internal/kernel/bridges", "internal/kernel/macvlan", "vhost", "qmp", "libvirt", "internal/network/firewall",
		"internal/network/integrate", "internal/kernel/bpfguard", "internal/kernel/ratelimit",
		"internal/kernel/peers", "internal/kernel/skbdrops", "internal/routed", "internal/vmm/agent",
		"internal/ovs",
	},
	{"internal/kernel/forwarding", "internal/kernel/clsact"},
	{
		"internal/kernel/tun", "internal/kernel/rtnl", "internal/kernel/fastpath", "internal/vmm/qemu",
		"libvirt/domainxml",
		"internal/kernel/ethtool", "internal/kernel/sniff", "internal/network/nft",
		"internal/network/ruleset", "internal/network/dhcp",
		"internal/network/radv", "internal/network/dnsrelay", "internal/kernel/announce", "internal/evpn",
	},
	{"internal/network/tool"},
	{
		"internal/kernel/netns", "step", "bridge/inbound", "internal/stablemac", "internal/network/config",
		"internal/network/child",
	},
	{"internal/vhostuser"},
	{"internal/kernel/pidfd", "internal/kernel/procview", "internal/vhostuser/virtq", "internal/sdnotify"},
	{
		"internal/kernel/procfd", "internal/kernel/fdpass", "internal/cli/console",
		"internal/cli/output",
		"internal/cli/version", "internal/access/privilege", "internal/libvirthook/hookfile", "bridge/vswitch/offload",
		"internal/rundir", "internal/alias", "internal/cli/fdroom", "bridge/brport", "macvtap/vtap",
		"internal/kernel/sockopt", "internal/strictyaml", "internal/routed/gateway", "internal/filelock",
		"internal/sandbox",
		"internal/framefilter", "bridge/portsec", "bridge/portrate",
		"bridge/vxlan", "internal/ovsdb", "internal/vhostuser/guestmem",
	},
}

// systemCalls are the packages that may import x/sys/unix and call functions of package syscall,
// whose constants and types all may use.
var systemCalls = []string{
	"bridge/vswitch", "internal/endpoint", "internal/access/privilege", "internal/kernel/sockopt",
	"internal/kernel/tun", "internal/kernel/fastpath",
	"internal/kernel/netns", "internal/kernel/procfd", "internal/kernel/rtnl", "internal/kernel/fdpass",
	"internal/kernel/pidfd", "internal/kernel/procview", "internal/kernel/ethtool",
	"internal/kernel/ratelimit", "internal/kernel/clsact",
	"internal/kernel/bpfguard", "internal/kernel/macvlan", "internal/kernel/sniff",
	"vhost", "qmp", "internal/network/radv",
	"internal/network/dnsrelay", "internal/kernel/announce",
	"libvirt", "internal/doctor", "internal/vhostuser",
	"internal/cli/fdroom", "internal/sdnotify", "testvm", "cmd/testvm",
}

// syscallsElsewhere are functions of package syscall that other packages may call: Flock, of the
// directory by which verbs on a libvirt guest exclude each other.
var syscallsElsewhere = []string{"Flock"}

// forTests may be imported only by tests and by cmd/testvm; internal/cli/mangen, by the generator
// of the man pages.
var forTests = []string{
	"internal/nstest", "internal/leaktest", "internal/vmm/qmptest", "internal/bench", "internal/cli/mangen",
	"internal/install", "internal/fresh", "internal/release", "internal/packaging", "testvm", "libvirt/libvirttest",
	"internal/testprogram", "bridge/portsec/portsectest", "internal/ovstest", "internal/vhostuser/frontend",
	"internal/testpmd", "internal/network/rivals", "internal/recipes",
}

// imports returns the imports of the module's packages, without those of tests.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	packages, err := list(".", "vmnet/...")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, p := range packages {
		all[strings.TrimPrefix(p.ImportPath, "vmnet/")] = p.Imports
	}
	return all
}

func layerOf(pkg string) int {
	return slices.IndexFunc(layers, func(l []string) bool { return slices.Contains(l, pkg) })
}

func TestImportsPointDown(t *testing.T) {
	all := imports(t)
	if len(all) < 10 {
		t.Fatalf("only %d packages were listed", len(all))
	}
	for pkg, deps := range all {
		layer := layerOf(pkg)
		testing := Under(pkg, forTests) || Under(pkg, []string{"cmd/testvm", "internal/arch", "internal/bench"})
		if layer < 0 && !testing {
			t.Errorf("%s is in no layer: put it into ARCHITECTURE.md and into this test", pkg)
		}
		for _, dep := range deps {
			name, ours := strings.CutPrefix(dep, "vmnet/")
			switch {
			case ours && layer >= 0 && layerOf(name) <= layer:
				t.Errorf("%s imports %s, which is not below it", pkg, name)
			case ours && !testing && Under(name, forTests):
				t.Errorf("%s imports %s, which is for tests", pkg, name)
			case dep == "golang.org/x/sys/unix" && !Under(pkg, systemCalls) && !Under(pkg, forTests):
				t.Errorf("%s imports %s: system calls belong into %v", pkg, dep, systemCalls)
			}
		}
	}
}

// TestSystemCalls looks for calls of package syscall, which are system calls too.
func TestSystemCalls(t *testing.T) {
	m, err := loadOwn()
	if err != nil {
		t.Fatal(err)
	}
	for path, p := range m.Packages {
		pkg := m.short(path)
		if Under(pkg, systemCalls) || Under(pkg, forTests) {
			continue
		}
		for id, o := range p.Info.Uses {
			f, ok := o.(*types.Func)
			if ok && f.Pkg() != nil && f.Pkg().Path() == "syscall" && f.Signature().Recv() == nil &&
				!slices.Contains(syscallsElsewhere, f.Name()) {
				t.Errorf("%s: syscall.%s: system calls belong into %v",
					m.Fset.Position(id.Pos()), f.Name(), systemCalls)
			}
		}
	}
}

// TestGolangciHasTheRules compares the lists that editors see with those here.
func TestGolangciHasTheRules(t *testing.T) {
	text, err := os.ReadFile("../../.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range systemCalls {
		if !strings.Contains(string(text), `- "!**/`+pkg+`/**"`) {
			t.Errorf(".golangci.yml does not let %s make system calls", pkg)
		}
	}
	for line := range strings.Lines(string(text)) {
		pkg, ok := strings.CutPrefix(strings.TrimSpace(line), `- "!**/`)
		if pkg = strings.TrimSuffix(pkg, `/**"`); ok && !Under(pkg, systemCalls) &&
			!Under(pkg, forTests) && pkg != "qmp/goqemu" {
			t.Errorf(".golangci.yml lets %s make system calls", pkg)
		}
	}
}

func TestNoPackageIsCalledUtil(t *testing.T) {
	for pkg := range imports(t) {
		base := pkg[strings.LastIndex(pkg, "/")+1:]
		if slices.Contains([]string{"util", "utils", "common", "types", "helpers", "core"}, base) {
			t.Errorf("%s says nothing by its name", pkg)
		}
	}
}

// TestOnlyVmnetLinksGoQEMU: go-qemu imports go-libvirt, and go-libvirt an SSH client, which no
// privileged program needs.
func TestOnlyVmnetLinksGoQEMU(t *testing.T) {
	for program, want := range map[string]bool{
		"vmnet": true, "qemu-netup": false, "qemu-netup-full": false,
		"vmnet-hook": false, "vmnet-cni": false,
	} {
		packages, err := list(".", "-deps", "vmnet/cmd/"+program)
		if err != nil {
			t.Fatal(err)
		}
		links := slices.ContainsFunc(packages, func(p listed) bool {
			return strings.HasPrefix(p.ImportPath, "github.com/digitalocean/go-qemu/")
		})
		if links != want {
			t.Errorf("%s links go-qemu: %v, want %v", program, links, want)
		}
	}
}

// TestLibrariesAreListed: docs/libraries.md has a row of each direct dependency, with its version.
func TestLibrariesAreListed(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/libraries.md")
	if err != nil {
		t.Fatal(err)
	}
	direct := regexp.MustCompile(`(?m)^\t(\S+\.\S+) (v\S+)$`).FindAllSubmatch(mod, -1)
	if len(direct) < 10 {
		t.Fatalf("go.mod has only %d direct dependencies", len(direct))
	}
	for _, m := range direct {
		row := "\n| " + string(m[1]) + " | "
		if !strings.HasPrefix(string(m[2]), "v0.0.0-") { // otherwise the row has the month
			row += string(m[2]) + ", "
		}
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/libraries.md has no row %q", row)
		}
	}
}

// TestArchitectureNamesFiles: the paths in ARCHITECTURE.md exist.
func TestArchitectureNamesFiles(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:cmd|internal|tapmgr|bridge|macvtap|qmp|docs)/[a-z0-9_/.-]+)`")
	paths := named.FindAllSubmatch(text, -1)
	if len(paths) < 20 {
		t.Errorf("it names only %d paths", len(paths))
	}
	for _, path := range paths {
		if _, err := os.Stat("../../" + string(path[1])); err != nil {
			t.Error(err)
		}
	}
}
