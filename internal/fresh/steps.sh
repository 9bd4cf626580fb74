#!/bin/sh
# What is done in the fresh root: steps.sh STEP... Packages and modules are fetched first, over the network; then there is
# none. All steps but one are the first process of a process namespace's children, and end with it.
set -u

# as_root and as_user run a line in a login shell, in the tree of theirs.
as_root() {
	env -i HOME=/root USER=root SHELL=/bin/bash TERM="${TERM:-dumb}" LANG=C.UTF-8 bash -lc "cd ~/vmnet && $1" </dev/null
}
as_user() {
	env -i HOME=/home/user USER=user SHELL=/bin/bash TERM="${TERM:-dumb}" LANG=C.UTF-8 \
		setpriv --reuid user --regid user --init-groups bash -lc "cd ~/vmnet && $1" </dev/null
}

# step runs one, and tells its time.
step() {
	printf '\n== %s\n' "$1"
	began=$(date +%s)
	"step_$1" || { status=$?; printf '== %s FAILED after %d s\n' "$1" $(($(date +%s) - began)); exit $status; }
	printf '== %s: %d s\n' "$1" $(($(date +%s) - began))
}

# setup is the only step that reaches the network.
step_setup() {
	apt-get -qq update && apt-get -qq -y --no-install-recommends install make >/dev/null && as_root 'make setup' || return
	as_root 'go mod download' && as_user 'go mod download' || return
	for deb in /var/cache/apt/archives/*.deb; do # for the next run
		[ -e "/opt/debs/${deb##*/}" ] || { cp "$deb" "/opt/debs/.$$" && mv "/opt/debs/.$$" "/opt/debs/${deb##*/}"; }
	done
}

step_lint() { as_root 'make lint'; }
step_demo() { as_root 'make demo'; }
step_root_sessions() { as_root 'go run ./internal/fresh/sessions -prompt "#" README.md'; }
step_user_sessions() { as_user 'go run ./internal/fresh/sessions -prompt "$" README.md'; }
step_quick() { as_user 'make quick'; }

# What a test cannot do in a process namespace is done by the step pidns.
step_test() { as_root "VMNET_REQUIRE=${VMNET_REQUIRE:+$VMNET_REQUIRE,-pidns} make test"; }

# pidns runs the tests that need the first process namespace, in it.
step_pidns() { as_root "VMNET_REQUIRE=${VMNET_REQUIRE:-} make test-pids"; }

# step_run is for experiments: FRESH_RUN=LINE fresh.sh run
step_run() { as_root "$FRESH_RUN"; }

# private gives what follows a network, and a view of /sys, of its own.
private() {
	umount /sys && mount -t sysfs sysfs /sys && ip link set lo up || exit
	for s in "$@"; do step "$s"; done
	exit
}

case $1 in
--private) shift && private "$@" ;;
--inside)
	shift
	umount -l /mnt
	step setup
	in_pidns='' after=''
	for s in "$@"; do
		case $s in pidns) after=$s ;; *) in_pidns="$in_pidns $s" ;; esac
	done
	# shellcheck disable=SC2086 # lists of words
	[ -z "$in_pidns" ] || setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child --mount-proc sh "$0" --private $in_pidns || exit
	[ -z "$after" ] || unshare --net --mount sh "$0" --private $after || exit
	echo "== all steps passed"
	;;
esac
