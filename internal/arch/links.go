// Package arch holds the rules about what may import and link what, their tests, and what `make
// arch` prints about the code.
package arch

import (
	"slices"
	"strings"
)

// A ForbiddenLink is a package that a program must not link.
type ForbiddenLink struct {
	Program string
	Package string // its import path; if it ends in "/...", packages below it count too
	Why     string
	NotYet  bool // the link still exists: make arch prints it
}

// ForbiddenLinks are the packages that programs must not link. The test wants NotYet to be set for
// those that are linked, and for no others.
var ForbiddenLinks = []ForbiddenLink{
	{Program: "cmd/qemu-netup", Package: "vmnet/tapmgr/...", Why: "the setuid program is small"},
	{Program: "cmd/qemu-netup", Package: "vmnet/bridge/vswitch/...", Why: "the setuid program is small"},
	{Program: "cmd/qemu-netup", Package: "vmnet/libvirt", Why: "the setuid program is small"},
	{Program: "cmd/qemu-netup", Package: "github.com/cilium/ebpf/...", Why: "the setuid program is small"},
	{Program: "cmd/qemu-netup", Package: "vmnet/internal/ovsdb", Why: "the setuid program is small"},
	{Program: "cmd/qemu-netup", Package: "encoding/json", Why: "the bridge helper starts faster without"},
	{Program: "cmd/qemu-netup", Package: "regexp", Why: "the bridge helper starts faster without"},
	{Program: "cmd/qemu-netup", Package: "math/big", Why: "the bridge helper starts faster without"},
	{Program: "cmd/qemu-netup-full", Package: "vmnet/libvirt", Why: "libvirt is vmnet's alone"},
	{
		Program: "cmd/qemu-netup-full", Package: "github.com/digitalocean/go-libvirt/...",
		Why: "libvirt is vmnet's alone",
	},
	{Program: "cmd/qemu-netup-full", Package: "vmnet/bridge/vswitch", Why: "the switch's datapath is vmnet's alone"},
	{Program: "cmd/qemu-netup-full", Package: "vmnet/bridge/vswitch/control/server", Why: "only vmnet runs a switch"},
	{Program: "cmd/vmnet-hook", Package: "vmnet/libvirt", Why: "a hook must not call libvirt, which waits for it"},
	{Program: "cmd/vmnet-hook", Package: "github.com/digitalocean/go-libvirt/...", Why: "libvirt is vmnet's alone"},
	{Program: "cmd/vmnet-hook", Package: "vmnet/bridge/vswitch", Why: "the switch's datapath is vmnet's alone"},
	{Program: "cmd/vmnet-hook", Package: "vmnet/bridge/vswitch/control/server", Why: "only vmnet runs a switch"},
	{Program: "cmd/vmnet-cni", Package: "vmnet/libvirt", Why: "libvirt is vmnet's alone"},
	{Program: "cmd/vmnet-cni", Package: "vmnet/bridge/vswitch", Why: "the switch's datapath is vmnet's alone"},
	{Program: "cmd/qemu-netup", Package: "github.com/digitalocean/...", Why: "libvirt is vmnet's alone"},
	{Program: "cmd/testvm", Package: "github.com/digitalocean/...", Why: "libvirt is vmnet's alone"},
}

// In reports whether the link is among a program's packages, given by their import paths.
func (f ForbiddenLink) In(packages []string) bool {
	root, tree := strings.CutSuffix(f.Package, "/...")
	return slices.ContainsFunc(packages, func(p string) bool {
		return p == root || tree && strings.HasPrefix(p, root+"/")
	})
}

// Linked returns the import paths of all packages that a program of the module in dir links.
func Linked(dir, program string) ([]string, error) {
	all, err := list(dir, "-deps", "./"+program)
	paths := make([]string, len(all))
	for i, l := range all {
		paths[i] = l.ImportPath
	}
	return paths, err
}

// Under reports whether a package is one of roots or below one.
func Under(pkg string, roots []string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return pkg == r || strings.HasPrefix(pkg, r+"/") })
}
