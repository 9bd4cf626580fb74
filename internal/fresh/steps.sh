#!/bin/sh
# Runs the steps in the fresh root: steps.sh --inside STEP... It fetches packages and modules first;
# the steps after that have no network. All steps but pidns and hostile run in a process namespace,
# and end with this script.
set -u

# as_root and as_user run a line in a login shell, in that user's tree.
as_root() {
	env -i HOME=/root USER=root SHELL=/bin/bash TERM="${TERM:-dumb}" LANG=C.UTF-8 bash -lc "cd ~/vmnet && $1" </dev/null
}
as_user() {
	env -i HOME=/home/user USER=user SHELL=/bin/bash TERM="${TERM:-dumb}" LANG=C.UTF-8 \
		setpriv --reuid user --regid user --init-groups bash -lc "cd ~/vmnet && $1" </dev/null
}

# step runs a step and prints its time.
step() {
	printf '\n== %s\n' "$1"
	began=$(date +%s)
	"step_$1" || { status=$?; printf '== %s FAILED after %d s\n' "$1" $(($(date +%s) - began)); exit $status; }
	printf '== %s: %d s\n' "$1" $(($(date +%s) - began))
}

# setup is the only step that reaches the network.
step_setup() {
	apt-get -qq update && apt-get -qq -y --no-install-recommends install make >/dev/null && as_root 'make setup release-setup' || return
	as_root 'go mod download && go clean -testcache' && as_user 'go mod download' || return
	for deb in /var/cache/apt/archives/*.deb; do # for the next run
		[ -e "/opt/debs/${deb##*/}" ] || { cp "$deb" "/opt/debs/.$$" && mv "/opt/debs/.$$" "/opt/debs/${deb##*/}"; }
	done
}

step_lint() { as_root 'make lint'; }
step_demo() { as_root 'make demo'; }
step_root_sessions() { as_root 'go run ./internal/fresh/sessions -prompt "#" README.md docs/libvirt.md'; }
step_user_sessions() { as_user 'go run ./internal/fresh/sessions -prompt "$" README.md docs/switch.md'; }

# The packages for two machines, which a systemd of their own starts, upgrades and removes.
step_packages() { as_root 'make packages-test'; }

# The tests of bytes as programs of an ARM processor and of a big-endian one.
step_cross() { as_root "make cross-test CROSS='arm64 s390x'"; }

# Six fuzz tests for 30 s each, by turns: ten runs reach all. What they learn stays in the cache.
step_fuzz() { as_root 'make fuzz FUZZTIME=30s FUZZMOST=6'; }

# quick is not among the usual steps: lint and user_test do all that it does.
step_quick() { as_user 'make quick'; }

# The packages with several goroutines, which have the race detector.
raced='./bridge/... ./internal/declare ./internal/guest ./internal/kernel/... ./internal/monitor'
raced="$raced ./internal/ovs... ./internal/top ./internal/vhostuser/... ./internal/watch"
raced="$raced ./libvirt ./macvtap/... ./qmp ./vhost"

# A user without root gets the same command, and fewer tests. Those that build a release would do
# the same as root.
step_user_test() { as_user "make test RACE='$raced ./tapmgr' SKIP=TestRelease"; }

# The step pidns runs the tests that cannot run in a process namespace.
step_test() { as_root "VMNET_REQUIRE=${VMNET_REQUIRE:+$VMNET_REQUIRE,-pidns} make test RACE='$raced'"; }

# pidns runs the tests that need the first process namespace, in it.
step_pidns() { as_root "VMNET_REQUIRE=${VMNET_REQUIRE:-} make test-pids"; }

# hostile runs the tests of both steps beside a hostile user's processes, in each package's
# namespaces and with very many files (see internal/fresh/hostile); those of pidns twice at once,
# after a run that is killed among its tests, for which all is compiled first.
step_hostile() {
	as_root 'go build -o /var/tmp/hostile ./internal/fresh/hostile && CGO_ENABLED=0 go test -run "^$" ./tapmgr ./cmd/vmnet-hook ./internal/watch' || return
	as_root "VMNET_REQUIRE=${VMNET_REQUIRE:-} /var/tmp/hostile -files 52000 -killed 12s -copies 2 make test-pids" || return
	as_root "VMNET_REQUIRE=${VMNET_REQUIRE:+$VMNET_REQUIRE,-pidns} /var/tmp/hostile make test-packages"
}

# step_run is for experiments: FRESH_RUN=LINE fresh.sh run
step_run() { as_root "$FRESH_RUN"; }

# left prints the processes of this namespace except this shell, its first process, and the links
# that did not exist at the beginning.
left() {
	for p in /proc/[0-9]*; do
		[ "$p" != /proc/1 ] && read -r stat <"$p/stat" || continue
		case $stat in *') Z '*) ;; *) echo "process ${stat%%)*})" ;; esac
	done 2>/dev/null
	for link in /sys/class/net/*; do
		case " $links " in *" ${link##*/} "*) ;; *) echo "link ${link##*/}" ;; esac
	done
}

# own_network sets up a new network namespace.
own_network() { umount /sys && mount -t sysfs sysfs /sys && ip link set lo up; }

# private runs steps in namespaces of their own, and fails if a step leaves anything behind.
private() {
	own_network || exit
	links=$(cd /sys/class/net && echo *)
	for s in "$@"; do
		step "$s"
		n=0
		while left >/var/tmp/left && [ -s /var/tmp/left ]; do
			n=$((n + 1))
			[ $n -lt 100 ] || { echo "== $s left behind:" && cat /var/tmp/left && exit 1; }
			sleep 0.1
		done
	done
	exit
}

# in_pidns runs this script in a process namespace, with the options of unshare(1) given before --.
in_pidns() {
	options=''
	while [ "$1" != -- ]; do options="$options $1" && shift; done
	shift
	# shellcheck disable=SC2086 # a list of words
	setpriv --pdeathsig KILL unshare $options --mount --pid --fork --kill-child --mount-proc sh "$0" "$@" || exit
}

case $1 in
--step) step "$2" ;;
--private) shift && private "$@" ;;
--inside)
	shift
	umount -l /mnt
	in_pidns -- --step setup
	after=''
	for s in "$@"; do
		shift
		case $s in pidns | hostile) after="$after $s" ;; *) set -- "$@" "$s" ;; esac
	done
	[ $# = 0 ] || in_pidns --net -- --private "$@"
	for s in $after; do
		unshare --net --mount sh "$0" --private-network "$s" || exit
	done
	echo "== all steps passed"
	;;
--private-network) own_network && step "$2" ;;
esac
