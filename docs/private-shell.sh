#!/bin/sh
# A shell of root's in network, mount and process namespaces of its own, with its own /run, to try vmnet without touching
# this machine; all of it ends with the shell. With --libvirt it has a libvirtd, /etc and /var of its own, too. With
# a command it runs that instead, and ends with its status.
#
#   exec sh docs/private-shell.sh [--libvirt] [COMMAND...]
#
# By exec no line that follows can reach the shell that this was typed into, be it pasted. Where the private shell cannot
# be had, lines are read and not run, for the same reason.
set -u
me=${0##*/}
top=$(cd "$(dirname "$0")/.." && pwd)

say() { echo "$me: $*" >&2; }

# refuse reads lines until exit, and runs none of them.
refuse() {
	say "there is no private shell: see above. This is your own machine, so nothing that follows is run, until 'exit'."
	while printf '(nothing is run) ' >&2 && read -r line; do
		case $line in
		exit | exit\ * | *\;\ exit) break ;;
		?*) echo "not run: $line" >&2 ;;
		esac
	done
	exit 1
}

# ready reports whether what the shell needs is there.
ready() {
	[ "$(id -u)" = 0 ] || { say "only root can make namespaces with devices in them: run it as root" && return 1; }
	[ -x "$top/bin/vmnet" ] || { say "$top/bin has no vmnet: run 'make setup build' first" && return 1; }
	[ "$libvirt" = no ] || { command -v libvirtd && command -v virsh; } >/dev/null || {
		say "libvirtd or virsh is missing: run 'make setup' first"
		return 1
	}
	case $top/ in /run/* | /var/*) say "$top cannot be seen by what has a /run and /var of its own: move it" && return 1 ;; esac
}

# start_libvirtd starts it and waits until it answers.
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
			say "libvirtd does not start. It says:"
			cat /run/libvirtd.log >&2
			return 1
		}
		sleep 0.1
	done
}

# inside is what happens in the namespaces, of which this shell is the first process: it stays, to reap.
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
	# Not a login shell, nor one that reads the user's files: those may set PATH.
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
# shellcheck disable=SC2086 # a flag, or none
if ready; then
	unshare --net --mount --pid --fork --kill-child --mount-proc sh "$0" --inside $flag "$@" && exit
	status=$?
fi
[ $# = 0 ] || exit $status
refuse
