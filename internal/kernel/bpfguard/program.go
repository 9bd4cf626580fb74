package bpfguard

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/clsact"
)

// The names of the maps as the kernel stores them, in at most 15 bytes.
const (
	configMap = ".rodata"
	dropsMap  = guardMapDrops
)

// object is the compiled program, parsed once. Its users copy it.
var object = sync.OnceValues(loadGuard)

// load loads the program for a NIC, which continues with the maps of an old one unless that is nil.
// The caller closes the program.
func load(cfg portsec.Config, old *loaded) (*ebpf.Program, error) {
	var objects guardPrograms
	kept := old.replacements(dropsMap, guardMapCaptures)
	if err := security.load(object, guardVarConfig, settingsOf(cfg), kept, &objects); err != nil {
		return nil, err
	}
	return objects.VmnetGuard, nil
}

// load loads programs with a configuration into objects, which bpf2go has generated.
func (f feature) load(object func() (*ebpf.CollectionSpec, error), variable string, settings any,
	maps map[string]*ebpf.Map, objects any,
) error {
	spec, err := object()
	if err != nil {
		return fmt.Errorf("read a BPF program: %w", err)
	}
	spec = spec.Copy()
	if err := spec.Variables[variable].Set(settings); err != nil {
		return fmt.Errorf("configure a BPF program: %w", err)
	}
	opts := ebpf.CollectionOptions{MapReplacements: maps}
	err = clsact.WithMemlock(func() error { return spec.LoadAndAssign(objects, &opts) })
	if err != nil {
		return fmt.Errorf("load a BPF program: %w", f.explain(err))
	}
	return nil
}

// Errors where this kernel, or this process, cannot use BPF.
var (
	ErrUnavailable        = errors.New("port security by the kernel is not available")
	ErrInboundUnavailable = errors.New("filtering what comes in to a guest is not available")
)

// A feature is what a program is for, in errors.
type feature struct {
	unavailable error
	instead     string // what can be done without it
}

var (
	security = feature{ErrUnavailable, "use a userspace switch (vmnet switch), whose port security needs no BPF"}
	inwards  = feature{ErrInboundUnavailable, "filter in the guest"}
)

// explain adds the cure to an error of bpf(2).
func (f feature) explain(err error) error {
	var cure string
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, ebpf.ErrNotSupported):
		cure = "use a kernel with CONFIG_BPF_SYSCALL, Linux 5.10 or newer"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		cure = "run it as root of the host, without a seccomp filter or a kernel lockdown that forbids bpf(2); " +
			"qemu-netup needs setuid root, or setcap cap_net_admin,cap_bpf,cap_perfmon+ep"
	default:
		return err
	}
	return fmt.Errorf("%w: %w (%s; or %s)", f.unavailable, err, cure, f.instead)
}

// explainFilter adds the cure to an error of a request about a qdisc or a filter.
func (f feature) explainFilter(err error) error {
	if explained, ok := clsact.Explain(err, f.unavailable); ok {
		return explained
	}
	return f.explain(err)
}

// A loaded is a program of ours that is in the kernel, opened by its id.
type loaded struct {
	maps    map[string]*ebpf.Map // by name, those of the program's source
	current bool                 // it is the program of this build
}

// Close closes the maps, which were opened to be read: nothing can be lost by it.
func (l *loaded) Close() {
	for _, m := range l.maps {
		_ = m.Close()
	}
}

// open opens a program in the kernel that has the maps of spec with these names. It needs
// CAP_SYS_ADMIN, as all ids of BPF do. If the program lacks one of the maps, or has gone, the error
// matches fs.ErrNotExist with errors.Is. The caller closes it.
func (f feature) open(id uint32, spec *ebpf.CollectionSpec, program string, names ...string) (*loaded, error) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return nil, fmt.Errorf("open BPF program %d: %w", id, f.explain(err))
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, fmt.Errorf("read BPF program %d: %w", id, f.explain(err))
	}
	l := &loaded{maps: map[string]*ebpf.Map{}, current: spec.Programs[program].Compatible(info) == nil}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		if err := l.openMap(id, spec, names); err != nil {
			l.Close()
			return nil, f.explain(err)
		}
	}
	if len(l.maps) != len(names) {
		l.Close()
		return nil, fmt.Errorf("BPF program %d (%s) lacks the maps of %s: %w", id, info.Name, program,
			fs.ErrNotExist)
	}
	return l, nil
}

// openMap opens one map of a program, and keeps it if it is one of the names.
func (l *loaded) openMap(id ebpf.MapID, spec *ebpf.CollectionSpec, names []string) error {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return fmt.Errorf("open BPF map %d: %w", id, err)
	}
	info, err := m.Info()
	wanted := err == nil && slices.Contains(names, info.Name) && l.maps[info.Name] == nil
	if wanted && fits(spec.Maps[info.Name], info, m) {
		l.maps[info.Name] = m
		return nil
	}
	_ = m.Close() // it was opened to be read
	if err != nil {
		return fmt.Errorf("read BPF map %d: %w", id, err)
	}
	return nil
}

// fits reports whether a map has the form of this build's. Of a configuration, only the size of the
// value counts: the kernel adds flags to that map.
func fits(spec *ebpf.MapSpec, info *ebpf.MapInfo, m *ebpf.Map) bool {
	if info.Name == configMap {
		return info.ValueSize == spec.ValueSize
	}
	return spec.Compatible(m) == nil
}

// settings reads the configuration of the program into v.
func (l *loaded) settings(v any) error {
	if err := l.maps[configMap].Lookup(uint32(0), v); err != nil {
		return fmt.Errorf("read the configuration of a BPF program: %w", err)
	}
	return nil
}

// count reads the counters of that map, of all processors, from the first on.
func (l *loaded) count(name string, totals []uint64) error {
	for i := range totals {
		var each []uint64
		if err := l.maps[name].Lookup(uint32(i), &each); err != nil {
			return fmt.Errorf("read the counters of a BPF program: %w", err)
		}
		for _, n := range each {
			totals[i] += n
		}
	}
	return nil
}

// replacements returns the maps of those names with which a new program continues.
func (l *loaded) replacements(names ...string) map[string]*ebpf.Map {
	all := map[string]*ebpf.Map{}
	for _, name := range names {
		if l != nil && l.maps[name] != nil {
			all[name] = l.maps[name]
		}
	}
	return all
}
