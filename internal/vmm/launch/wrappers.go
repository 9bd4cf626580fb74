package launch

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// A wrapper is a program that executes the program in its arguments, which inherits its files. Its
// options, as in its manual page, are needed to find that program.
type wrapper struct {
	short    string // options of one letter, in getopt(3) form: "n:" has an argument, "m::" may have one attached
	long     string // options of words: "adjustment=" has an argument, "mount=?" may have one attached
	words    string // words that follow the options
	operands int    // operands that follow, before the program
	assigns  bool   // NAME=VALUE may stand before the program
	digits   bool   // -5 is an option
	needs    string // an option without which it is not a wrapper
	after    string // the program follows this word, whatever stands before it
	closes   string // why it is not a wrapper: it does not pass the files on
	shell    bool   // not a wrapper: it runs a program in its own language
	apart    bool   // it may give the program other files, limits, memory or another user
}

// wrappers are the known ones, by name. Others need a placeholder.
var wrappers = map[string]wrapper{
	// coreutils
	"nice":  {short: "n:", long: "adjustment=", digits: true},
	"nohup": {},
	"env": {
		short:   "i0vu:C:",
		long:    "ignore-environment null unset= chdir= debug block-signal=? default-signal=? ignore-signal=? list-signal-handling",
		assigns: true,
	},
	"stdbuf": {short: "i:o:e:", long: "input= output= error="},
	"chroot": {long: "groups= userspec= skip-chdir", operands: 1, apart: true},
	"timeout": {
		short: "fk:ps:v", long: "foreground kill-after= preserve-status signal= verbose", operands: 1,
	},
	"time": {short: "apqvf:o:", long: "append portability quiet verbose format= output="},
	// util-linux
	"taskset": {short: "ac", long: "all-tasks cpu-list", operands: 1},
	"chrt": {
		short: "abdfiorvRT:P:D:", operands: 1,
		long: "all-tasks batch deadline fifo idle other rr verbose reset-on-fork sched-runtime= sched-period= sched-deadline=",
	},
	"ionice": {short: "c:n:t", long: "class= classdata= ignore"},
	"setsid": {short: "cfw", long: "ctty fork wait"},
	"flock": {
		short:    "esxnuoFw:E:",
		long:     "exclusive shared nonblock nb unlock close no-fork timeout= wait= conflict-exit-code= verbose",
		operands: 1,
	},
	"runuser": {short: "u:g:G:m", long: "user= group= supp-group= preserve-environment", needs: "u", apart: true},
	"prlimit": {
		apart: true,
		short: "c::d::e::f::i::l::m::n::q::r::s::t::u::v::x::y::",
		long: "core=? data=? nice=? fsize=? sigpending=? memlock=? rss=? nofile=? msgqueue=? rtprio=? stack=? cpu=? nproc=? as=? locks=? rttime=? " +
			"noheadings raw verbose output=",
	},
	"setpriv": {
		apart: true,
		short: "d",
		long: "no-new-privs nnp ambient-caps= inh-caps= bounding-set= ruid= euid= rgid= egid= reuid= regid= clear-groups keep-groups " +
			"init-groups groups= securebits= pdeathsig= selinux-label= apparmor-profile= reset-env",
	},
	"unshare": {
		apart: true,
		short: "muipnUCTfrcR:w:S:G:l:",
		long: "mount=? uts=? ipc=? net=? pid=? user=? cgroup=? time=? fork map-root-user map-current-user map-auto map-user= map-group= map-users= " +
			"map-groups= kill-child=? mount-proc=? propagation= setgroups= keep-caps root= wd= setuid= setgid= monotonic= boottime=",
	},
	"nsenter": {
		apart: true,
		short: "at:m::u::i::n::p::U::C::T::r::w::W:S:G:FZ",
		long:  "all target= mount=? uts=? ipc=? net=? pid=? user=? cgroup=? time=? root=? wd=? wdns= setuid= setgid= preserve-credentials no-fork follow-context",
	},
	"linux64": {short: "BFILRSTXZ3v"},
	"linux32": {short: "BFILRSTXZ3v"},
	// others
	"numactl": {
		apart: true,
		short: "alhi:b:p:P:C:N:m:w:",
		long:  "all localalloc balancing interleave= preferred= preferred-many= physcpubind= cpunodebind= cpubind= membind= weighted-interleave=",
	},
	"ip":     {short: "n:", long: "netns=", words: "netns exec", operands: 1},
	"cgexec": {short: "g:", long: "sticky"},
	"systemd-run": {
		short: "qdGu:p:E:M:H:", needs: "scope", apart: true,
		long: "scope user system quiet same-dir collect no-ask-password slice-inherit unit= slice= property= description= uid= gid= nice= setenv= working-directory= expand-environment=",
	},
	"strace": {
		short: "ACcdDfFhikNnqrtTvVwxyYzZa:b:e:E:I:o:O:P:s:S:u:U:X:",
		long:  "follow-forks output= output-separately trace= string-limit= summary summary-only decode-fds=? quiet=? timestamps=? relative-timestamps=? env= user= seccomp-bpf daemonize=?",
	},
	"ltrace":    {short: "bcCfiLrStTa:A:D:e:l:n:o:s:u:w:x:"},
	"gdb":       {after: "--args"},
	"perf":      {after: "--"},
	"tini":      {short: "sgwvp:e:"},
	"dumb-init": {short: "cvr:", long: "single-child verbose rewrite="},
	"busybox":   {},

	"sudo":              {closes: "closes all files that it inherits: run qemu-netup by it instead (sudo qemu-netup ... -- qemu-system-x86_64 ...)"},
	"doas":              {closes: "closes all files that it inherits: run qemu-netup by it instead (doas qemu-netup ... -- qemu-system-x86_64 ...)"},
	"pkexec":            {closes: "closes all files that it inherits: run qemu-netup by it instead (pkexec qemu-netup ... -- qemu-system-x86_64 ...)"},
	"start-stop-daemon": {closes: "may close all files that it inherits: have it start qemu-netup instead (... --exec /usr/local/bin/qemu-netup -- ... -- qemu-system-x86_64 ...)"},
	"docker":            {closes: elsewhere}, "podman": {closes: elsewhere}, "ssh": {closes: elsewhere},
	"machinectl": {closes: elsewhere},
	"screen":     {closes: elsewhere}, "tmux": {closes: elsewhere},
	"at": {closes: elsewhere}, "batch": {closes: elsewhere},

	"sh": {shell: true}, "bash": {shell: true}, "dash": {shell: true}, "zsh": {shell: true}, "ksh": {shell: true},
	"ash": {shell: true}, "fish": {shell: true},
	"su": {shell: true}, "xargs": {shell: true}, "python": {shell: true}, "python3": {shell: true},
	"perl": {shell: true},
}

const elsewhere = "has another process start the program, which does not inherit the NICs' files: start qemu-netup there instead"

// errCloses matches the error for a program that does not pass the NICs on, wherever they are.
var errCloses = errors.New("the NICs cannot get through it")

func isClosing(err error) bool { return errors.Is(err, errCloses) }

// skip returns how many arguments precede the program that the wrapper executes, including the
// wrapper.
func (w wrapper) skip(argv []string) (int, error) {
	name := filepath.Base(argv[0])
	cure := fmt.Sprintf("so the start of QEMU's command is unknown (put %s where QEMU's arguments go)", Placeholder)
	switch {
	case w.closes != "":
		return 0, fmt.Errorf("%s %s: %w", name, w.closes, errCloses)
	case w.shell:
		return 0,
			fmt.Errorf("%s runs a text of its own, %s; such as: sh -c 'exec qemu-system-x86_64 -m 1G \"$@\"' sh %s",
				name, cure, Placeholder)
	case w.after != "":
		at := slices.Index(argv, w.after)
		if at < 0 {
			return 0, fmt.Errorf("%s has no argument %s, %s", name, w.after, cure)
		}
		return at + 1, nil
	}
	at, given := 1, false
	if w.assigns && len(argv) > 1 && argv[1] == "-" { // env's short form of -i
		at++
	}
	for ; at < len(argv) && len(argv[at]) > 1 && argv[at][0] == '-'; at++ {
		arg := argv[at]
		if arg == "--" {
			at++
			break
		}
		takesNext, known := w.option(arg)
		if !known {
			return 0, fmt.Errorf("%s: the option %q is not known here, %s", name, arg, cure)
		}
		given = given || w.needs != "" && (arg == "--"+w.needs || len(w.needs) == 1 &&
			strings.HasPrefix(arg, "-"+w.needs))
		if takesNext {
			at++
		}
	}
	if w.needs != "" && !given {
		return 0, fmt.Errorf("%s without %s %s: %w", name, dashed(w.needs), elsewhere, errCloses)
	}
	for _, word := range strings.Fields(w.words) {
		if at >= len(argv) || argv[at] != word {
			return 0, fmt.Errorf("%s is known here as %s %s only, %s", name, name, w.words, cure)
		}
		at++
	}
	for w.assigns && at < len(argv) && strings.Contains(argv[at], "=") {
		at++
	}
	return at + w.operands, nil
}

func dashed(option string) string {
	if len(option) == 1 {
		return "-" + option
	}
	return "--" + option
}

// option reports whether an argument consists of the wrapper's options, and whether the next
// argument is the value of the last of them.
func (w wrapper) option(arg string) (takesNext, known bool) {
	if name, ok := strings.CutPrefix(arg, "--"); ok {
		name, _, attached := strings.Cut(name, "=")
		for _, l := range strings.Fields(w.long) {
			if bare := strings.TrimRight(l, "=?"); bare == name {
				return strings.HasSuffix(l, "=") && !attached, bare != l || !attached
			}
		}
		return false, false
	}
	if w.digits && strings.Trim(arg, "-0123456789") == "" {
		return false, true
	}
	for i := 1; i < len(arg); i++ {
		at := strings.IndexByte(w.short, arg[i])
		if at < 0 || arg[i] == ':' {
			return false, false
		}
		switch rest := w.short[at+1:]; {
		case strings.HasPrefix(rest, "::"):
			return false, true // the rest of the word is its value
		case strings.HasPrefix(rest, ":"):
			return i == len(arg)-1, true
		}
	}
	return false, true
}
