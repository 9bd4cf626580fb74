package bpfguard

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// load loads the program for a NIC. If counters is not nil, the program continues with them. The
// caller closes the program.
func load(cfg portsec.Config, counters *ebpf.Map) (*ebpf.Program, error) {
	spec, err := object()
	if err != nil {
		return nil, fmt.Errorf("read the program for port security: %w", err)
	}
	spec = spec.Copy()
	if err := spec.Variables[guardVarConfig].Set(settingsOf(cfg)); err != nil {
		return nil, fmt.Errorf("configure the program for port security: %w", err)
	}
	var opts ebpf.CollectionOptions
	if counters != nil {
		opts.MapReplacements = map[string]*ebpf.Map{guardMapDrops: counters}
	}
	var objects guardPrograms
	err = clsact.WithMemlock(func() error { return spec.LoadAndAssign(&objects, &opts) })
	if err != nil {
		return nil, fmt.Errorf("load the BPF program for port security: %w", explain(err))
	}
	return objects.VmnetGuard, nil
}

// ErrUnavailable is returned where this kernel, or this process, cannot use BPF.
var ErrUnavailable = errors.New("port security by the kernel is not available")

// explain adds the cure to an error of bpf(2) or of a request for a filter.
func explain(err error) error {
	const instead = "; or use a userspace switch (vmnet switch), whose port security needs no BPF"
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
	return fmt.Errorf("%w: %w (%s%s)", ErrUnavailable, err, cure, instead)
}

// A loaded is a program of ours that is in the kernel, opened by its id.
type loaded struct {
	settings guardSettings
	counters *ebpf.Map
	current  bool
}

func (l *loaded) Close() error { return l.counters.Close() }

// open reads a program from the kernel. It needs CAP_SYS_ADMIN, as all ids of BPF do. If the
// program is not one of this package, or has gone, the error matches fs.ErrNotExist with
// errors.Is.
func open(id uint32) (*loaded, error) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return nil, fmt.Errorf("open BPF program %d: %w", id, explain(err))
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, fmt.Errorf("read BPF program %d: %w", id, explain(err))
	}
	spec, err := object()
	if err != nil {
		return nil, err
	}
	ids, _ := info.MapIDs()
	var l loaded
	var found bool
	for _, id := range ids {
		if err := l.openMap(id, spec, &found); err != nil {
			closeAll(l.counters)
			return nil, err
		}
	}
	if l.counters == nil || !found {
		closeAll(l.counters)
		return nil, fmt.Errorf("BPF program %d (%s) has none of the maps of port security: %w", id,
			info.Name, fs.ErrNotExist)
	}
	l.current = spec.Programs[guardProgVmnetGuard].Compatible(info) == nil
	return &l, nil
}

// openMap opens one map of a program, and keeps or reads what is of this package.
func (l *loaded) openMap(id ebpf.MapID, spec *ebpf.CollectionSpec, found *bool) error {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return fmt.Errorf("open BPF map %d: %w", id, explain(err))
	}
	info, err := m.Info()
	if err != nil {
		closeAll(m)
		return fmt.Errorf("read BPF map %d: %w", id, explain(err))
	}
	switch {
	case info.Name == dropsMap && l.counters == nil && spec.Maps[dropsMap].Compatible(m) == nil:
		l.counters = m
		return nil
	case info.Name == configMap && info.ValueSize == spec.Maps[configMap].ValueSize:
		*found = true
		err = m.Lookup(uint32(0), &l.settings)
	}
	closeAll(m)
	if err != nil {
		return fmt.Errorf("read the configuration of BPF map %d: %w", id, err)
	}
	return nil
}

// closeAll closes maps that were opened to be read; nothing can be lost by it.
func closeAll(maps ...*ebpf.Map) {
	for _, m := range maps {
		if m != nil {
			_ = io.Closer(m).Close()
		}
	}
}

// drops returns the number of dropped frames by reason, of all processors.
func (l *loaded) drops() (total [portsec.Reasons]uint64, err error) {
	for i := range total {
		var each []uint64
		if err := l.counters.Lookup(uint32(i), &each); err != nil {
			return total, fmt.Errorf("read the counters of port security: %w", err)
		}
		for _, n := range each {
			total[i] += n
		}
	}
	return total, nil
}
