package testvm

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// guestModules are what every guest needs: virtio NICs, and the agent's port.
var guestModules = []string{"virtio_pci", "virtio_net", "virtio_console"}

// rootModules are the further modules of a guest whose root is a directory of the machine.
var rootModules = []string{"9pnet_virtio", "9p", "overlay"}

// moduleFiles returns the files of the named modules and of their dependencies, in the order in
// which they can be loaded. Modules that are built into the kernel need no file.
//
// The kernel package has no modules.dep (depmod writes it at installation), so moduleFiles reads
// the dependencies from the modules themselves.
func moduleFiles(dir string, names []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list kernel modules: %w", err)
	}
	builtin, err := builtinModules(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	r := resolver{files: files, builtin: builtin, depends: moduleDepends}
	for _, name := range names {
		if err := r.add(moduleName(name), nil); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// moduleName is a module's name as the kernel shows it: '-' and '_' are the same.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// builtinModules reads modules.builtin, which has one path per line.
func builtinModules(path string) (map[string]bool, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("list the kernel's built-in modules: %w", err)
	}
	names := map[string]bool{}
	for s := bufio.NewScanner(bytes.NewReader(content)); s.Scan(); {
		names[moduleName(strings.TrimSuffix(filepath.Base(s.Text()), ".ko"))] = true
	}
	return names, nil
}

type resolver struct {
	files   map[string]string
	builtin map[string]bool
	depends func(file string) ([]string, error)
	order   []string
}

// add appends a module's file after those of its dependencies. path is the chain of modules from
// the requested one.
func (r *resolver) add(name string, path []string) error {
	file, ok := r.files[name]
	switch {
	case !ok && r.builtin[name], slices.Contains(r.order, file):
		return nil
	case !ok:
		return fmt.Errorf("kernel module %s is missing (needed by %q)", name, path)
	case slices.Contains(path, name):
		return fmt.Errorf("kernel module %s depends on itself (through %q)", name, path)
	}
	depends, err := r.depends(file)
	if err != nil {
		return err
	}
	for _, dep := range depends {
		if err := r.add(moduleName(dep), append(slices.Clip(path), name)); err != nil {
			return err
		}
	}
	r.order = append(r.order, file)
	return nil
}

// moduleDepends reads "depends=a,b" from a module's .modinfo section, whose
// entries end in NUL (include/linux/moduleparam.h).
func moduleDepends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("read kernel module %s: it has no .modinfo", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", file, err)
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
