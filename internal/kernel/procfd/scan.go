package procfd

import (
	"context"
	"errors"
	"os"
	"slices"
)

// A Scan visits the open files of all processes that the caller may inspect: those of its own user,
// or all with CAP_SYS_PTRACE. Any user may have many processes with many files, so a Scan limits
// the files of every user except root and the caller. A user can thereby hide only processes of its
// own.
type Scan struct {
	// PerProcess and PerUser limit how many files the Scan visits of one process, and of all
	// processes of one user.
	PerProcess, PerUser int

	self  int
	spent map[int]int // visited files by user
	over  []int
}

// All calls visit for the files, and skips processes that end in the meantime. It stops when ctx
// ends.
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

// Over returns the real uids of the users of whom All has not visited all files.
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
