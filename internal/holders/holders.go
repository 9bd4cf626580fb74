// Package holders finds the processes that have files open which NICs depend on: the queues of taps
// and macvtaps, network namespaces, and labels. It looks at no more of each user's processes than
// bounds allow, and says what it could not see.
package holders

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// initPidNS is the first pid namespace, in which all processes are seen (PROC_PID_INIT_INO in
// include/linux/proc_ns.h).
const initPidNS = "pid:[4026531836]"

// seesAll reports whether the caller sees what all processes have open. Process 1 is left out: it
// may be shielded even from root, and is no VMM.
func seesAll() bool {
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != initPidNS {
		return false
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if p == "/proc/1" {
			continue
		}
		fds, openErr := os.Open(p + "/fd")
		if openErr == nil {
			_ = fds.Close()
		}
		_, linkErr := os.Readlink(p + "/ns/net") // needs the same privilege as the links in fd (proc_fd_link)
		if errors.Is(openErr, fs.ErrPermission) || errors.Is(linkErr, fs.ErrPermission) {
			return false
		}
	}
	return err == nil
}

// OwnerOf returns the user of a process, or Nobody if that is in doubt: see pidfd.Owner.
func OwnerOf(pid int) int {
	uid, err := pidfd.Owner(pid)
	if err != nil {
		return Nobody
	}
	return uid
}

// Nobody is the user of a process whose user is in doubt. It is trusted by nobody.
const Nobody = -1

// Bounds, per user other than root and the caller, of what a look at all processes costs: the files
// whose names are read, those that are looked at more closely, the namespaces that are entered, and
// the labels that are kept. Going beyond one gives a notice, and hides only that user's own NICs.
const (
	MaxProcessFiles = 1 << 14
	MaxUserFiles    = 1 << 17
	MaxCloser       = 1 << 13
	maxSpaces       = 1 << 10
	MaxLabels       = 1 << 8
	MaxEarly        = 1 << 11 // files in which the process with a label has its lifeline
)

// Files is what processes have open that NICs of the Host's netns may depend on.
type Files struct {
	Own    uint64                   // inode of the Host's netns
	queues map[string][]procfd.File // of vmnet's taps, by the tap's name
	Nodes  map[int][]procfd.File    // that may be queues of macvtaps, by process
	Spaces []procfd.File            // netns, one of each process
	Labels []Label

	Orphans map[int]bool // processes with queues of taps that are gone, or of none yet

	vmms    map[int]bool             // which processes are QEMUs, once asked for
	devices map[uint64][]procfd.File // nodes by their device number, once asked for
	held    map[heldSpace]bool
	said    map[saying]bool
	closer  map[quota]int // how often files were looked at more closely, by user
	over    map[int]bool  // the users of whom not all was looked at

	guestsUnseen bool // see lookAtGuests

	seesAll func() bool // see seesAll
}

// A Label is a file whose name describes a NIC of the Host's netns.
type Label struct {
	procfd.File
	nic.Record
	Text string
	User int // user of the process that has it; Nobody if that is in doubt
}

// saying is the text of a label of a process, which may have it open any number of times.
type saying struct {
	pid  int
	text string
}

type heldSpace struct {
	pid   int
	inode uint64
}

// quota identifies what is bounded, for which user.
type quota struct {
	uid  int
	what string
}

// IsTrusted reports whether this process trusts what a user's processes say about themselves.
func IsTrusted(uid int) bool { return Trusts(os.Geteuid(), uid) }

// Trusts reports whether a caller trusts a user's processes: root's and the caller's own.
func Trusts(caller, uid int) bool { return uid == 0 || uid == caller }

// Look looks at all processes for the queues of those of these links that are taps, and for the
// NICs elsewhere that belong to the netns of that inode. notice is called with what was not looked
// at.
func Look(ctx context.Context, own uint64, links []*rtnl.Link, notice func(format string, args ...any)) (
	*Files, error,
) {
	op := newFiles(own)
	for _, l := range links {
		if l.Tun != nil {
			op.queues[l.Name] = nil
		}
	}
	scan := procfd.Scan{PerProcess: MaxProcessFiles, PerUser: MaxUserFiles}
	if err := scan.All(ctx, op.visit); err != nil {
		return nil, err
	}
	for _, uid := range scan.Over() {
		op.over[uid] = true
	}
	for uid := range op.over {
		notice("of the files of user %d's processes not all were looked at: they have too many", uid)
	}
	return op, op.lookAtGuests(links)
}

// Of looks at one process for the NICs elsewhere that belong to the netns of that inode.
func Of(pid int, own uint64) *Files {
	op := newFiles(own)
	procfd.Of(pid, op.visit)
	return op
}

func newFiles(own uint64) *Files {
	return &Files{
		Own: own, queues: map[string][]procfd.File{}, Nodes: map[int][]procfd.File{},
		Orphans: map[int]bool{}, vmms: map[int]bool{}, held: map[heldSpace]bool{}, said: map[saying]bool{},
		closer: map[quota]int{}, over: map[int]bool{},
		seesAll: sync.OnceValue(seesAll),
	}
}

// SeesAll reports whether the caller has certainly seen what all processes have open.
func (op *Files) SeesAll() bool { return !op.guestsUnseen && op.seesAll() }

// MayEnter counts one more netns that a user's process has open, and reports whether the user stays
// within the bound.
func (op *Files) MayEnter(uid int) bool { return op.within(uid, "namespaces", maxSpaces) }

// within counts one more of what is bounded, and reports whether the user stays within the bound.
func (op *Files) within(uid int, what string, most int) bool {
	if IsTrusted(uid) {
		return true
	}
	q := quota{uid, what}
	if op.closer[q] == most {
		op.over[uid] = true
		return false
	}
	op.closer[q]++
	return true
}

// visit records a file that matters. The targets of links, which may be long, are not kept.
func (op *Files) visit(f procfd.File) {
	target := f.Target
	f.Target = ""
	if inode, ok := netns.InodeOf(procfd.File{Target: target}); ok {
		if h := (heldSpace{f.PID, inode}); inode != op.Own && !op.held[h] && op.within(f.UID, "files", MaxCloser) {
			op.held[h] = true
			f.Target = target
			op.Spaces = append(op.Spaces, f)
		}
		return
	}
	if text, ok := procfd.LabelOf(procfd.File{Target: target}); ok {
		op.visitLabel(f, text)
		return
	}
	switch {
	case tun.LooksLikeQueue(procfd.File{Target: target}):
		if !op.within(f.UID, "files", MaxCloser) {
			return
		}
		name := tun.InterfaceOf(f)
		if name == "" {
			op.Orphans[f.PID] = true
		} else if known, ok := op.queues[name]; ok {
			op.queues[name] = append(known, f)
		}
	case macvlan.LooksLikeQueue(procfd.File{Target: target}) && op.within(f.UID, "files", MaxCloser):
		op.Nodes[f.PID] = append(op.Nodes[f.PID], f)
	}
}

// visitLabel records a label of a NIC that the process has now. A label that has ended may have the
// same text for a former NIC.
func (op *Files) visitLabel(f procfd.File, text string) {
	s := saying{f.PID, text}
	if !strings.HasPrefix(text, alias.Prefix) || op.said[s] || !op.within(f.UID, "sayings", MaxCloser) ||
		f.LabelEnded() {
		return
	}
	op.said[s] = true
	r, ok := nic.ParseRecord(text)
	if ok && r.Netns == op.Own && op.within(f.UID, "labels", MaxLabels) {
		op.Labels = append(op.Labels, Label{f, r, text, OwnerOf(f.PID)})
	}
}

// QueuesOf lists the open queues of a tap in the Host's netns. A process that only looked at
// another's has closed its copy by now.
func (op *Files) QueuesOf(ctx context.Context, name string) (found []procfd.File) {
	for _, f := range op.queues[name] {
		if ctx.Err() == nil && tun.InNetns(f, op.Own) && tun.InterfaceOf(f) == name {
			found = append(found, f)
		}
	}
	return found
}

// IsVMM reports whether a process is a QEMU. It looks at each process once.
func (op *Files) IsVMM(pid int) bool {
	is, known := op.vmms[pid]
	if !known {
		is = IsQEMU(pid)
		op.vmms[pid] = is
	}
	return is
}

// NodesOf lists the open files of the node with that number.
func (op *Files) NodesOf(number uint64) []procfd.File {
	if op.devices == nil {
		op.devices = map[uint64][]procfd.File{}
		for _, files := range op.Nodes {
			for _, f := range files {
				if n, ok := macvlan.NumberOf(f); ok {
					op.devices[n] = append(op.devices[n], f)
				}
			}
		}
	}
	return op.devices[number]
}

// IsQEMU reports whether a process is a QEMU.
func IsQEMU(pid int) bool {
	_, err := qemu.ByPID(pid)
	return err == nil
}
