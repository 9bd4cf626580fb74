#!/bin/sh
# A root shell in network, mount and process namespaces of its own, with its own /run, to try vmnet
# without touching this machine. Everything ends with the shell. With --libvirt it also has its own
# libvirtd, /etc and /var. With a command it runs that instead of a shell, and ends with its status.
#
#   exec sh docs/private-shell.sh [--libvirt] [COMMAND...]
#
# With exec, no following line can reach the calling shell, even if all lines were pasted at once.
# If the private shell cannot start, this script reads the lines without running them, for the same
# reason.
set -u
me=${0##*/}
top=$(cd "$(dirname "$0")/.." && pwd)

say() { echo "$me: $*" >&2; }

# refuse reads lines until exit, and runs none of them.
refuse() {
	say "the private shell did not start: see above. This is your own machine, so no further line is run, until 'exit'."
	while printf '(nothing is run) ' >&2 && read -r line; do
		case $line in
		exit | exit\ * | *\;\ exit) break ;;
		?*) echo "not run: $line" >&2 ;;
		esac
	done
	exit 1
}

# ready reports whether everything that the shell needs exists.
ready() {
	[ "$(id -u)" = 0 ] || { say "only root can make namespaces with devices in them (run it as root)" && return 1; }
	[ -x "$top/bin/vmnet" ] || { say "$top/bin has no vmnet (run 'make setup build' first)" && return 1; }
	[ "$libvirt" = no ] || { command -v libvirtd && command -v virsh; } >/dev/null || {
		say "libvirtd or virsh is missing (run 'make setup' first)"
		return 1
	}
	case $top/ in /run/* | /var/*) say "$top is not visible in a shell with its own /run and /var (move it elsewhere)" && return 1 ;; esac
}

# start_libvirtd starts libvirtd and waits until it answers.
start_libvirtd() {
	private_dirs
	private_conf '' ''
	echo "$me: starting libvirtd" >&2
	libvirtd >/run/libvirtd.log 2>&1 </dev/null &
	LIBVIRTD=$! HOOKS=/etc/libvirt/hooks/qemu.d
	export LIBVIRTD HOOKS
	n=0
	until virsh -q version >/dev/null 2>&1; do
		n=$((n + 1))
		kill -0 "$LIBVIRTD" 2>/dev/null && [ $n -lt 300 ] || {
			say "libvirtd does not start. Its log:"
			cat /run/libvirtd.log >&2
			return 1
		}
		sleep 0.1
	done
}

# inside runs in the namespaces. This shell is their first process, and stays to reap others.
inside() {
	set -e
	if [ "$libvirt" = yes ]; then
		. "$top/libvirt/libvirttest/private.sh"
		start_libvirtd
	else
		mount -t tmpfs none /run
	fi
	ip link set lo up
	export XDG_RUNTIME_DIR=/run PATH="$top/bin:$PATH"
	if [ $# -gt 0 ]; then
		status=0
		"$@" || status=$?
		exit $status
	fi
	# Neither a login shell nor one that reads the user's files, which may set PATH.
	echo "PS1='(private) \\w# '" >/run/bashrc
	bash --rcfile /run/bashrc || :
	exit 0
}

libvirt=no inner=no
[ "${1:-}" != --inside ] || { inner=yes && shift; }
[ "${1:-}" != --libvirt ] || { libvirt=yes && shift; }
if [ $inner = yes ]; then inside "$@"; fi
flag=
[ $libvirt = no ] || flag=--libvirt
status=1
# shellcheck disable=SC2086 # a flag or nothing
if ready; then
	unshare --net --mount --pid --fork --kill-child --mount-proc sh "$0" --inside $flag "$@" && exit
	status=$?
fi
[ $# = 0 ] || exit $status
refuse
