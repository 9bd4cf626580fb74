package procfd

import (
	"context"
	"errors"
	"os"
	"slices"
)

// A Scan visits what all processes have open that the caller may inspect: its own user's, or all
// with CAP_SYS_PTRACE. Anybody may have any number of processes with any number of files; so of
// users other than root and the caller no more is looked at than the bounds allow. That hides no
// more than those users' own processes.
type Scan struct {
	// PerProcess and PerUser bound how many files are looked at of one process, and of all
	// processes of one user.
	PerProcess, PerUser int

	self  int
	spent map[int]int // files, by the user whose they are
	over  []int
}

// All visits the files. Processes that end meanwhile are left out. It ends with ctx.
func (s *Scan) All(ctx context.Context, visit func(File)) error {
	pids, err := PIDs()
	if err != nil {
		return err
	}
	s.self, s.spent, s.over = os.Geteuid(), map[int]int{}, nil
	l := &look{}
	for _, pid := range pids {
		if err := s.process(ctx, l, pid, visit); err != nil {
			return err
		}
	}
	return nil
}

// Over lists the users, by their real uids, of whose files not all were looked at.
func (s *Scan) Over() []int {
	slices.Sort(s.over)
	return slices.Compact(s.over)
}

func (s *Scan) process(ctx context.Context, l *look, pid int, visit func(File)) error {
	ids, err := UserIDs(pid)
	if err != nil {
		return context.Cause(ctx) // it has ended
	}
	uid := one(ids)
	trusted := uid == 0 || uid == s.self
	l.limit = maxOf
	if payer := ids[0]; !trusted {
		if l.limit = min(s.PerProcess, s.PerUser-s.spent[payer]); l.limit <= 0 {
			s.over = append(s.over, payer)
			return context.Cause(ctx)
		}
	}
	err = l.process(ctx, pid, func(fd int, target []byte) {
		if !trusted {
			s.spent[ids[0]]++
		}
		visit(File{PID: pid, FD: fd, Target: string(target), UID: uid})
	})
	if errors.Is(err, errLimit) {
		s.over = append(s.over, ids[0])
		return nil
	}
	return err
}
