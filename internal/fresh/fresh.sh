#!/bin/sh
# Does what a newcomer does, in a Debian 12 with Go and nothing else: `make fresh`. It needs root, a
# Debian host with apt, and the network to fetch packages and modules.
#
#   fresh.sh [STEP...]    steps.sh has the steps; without any, these:
#
# The root file system is a minimal one from debootstrap, kept in the cache directory, under a tmpfs
# for everything that is written. It is in namespaces of its own: all mounts and processes end with
# this script, however it ends.
set -eu
[ $# -gt 0 ] || set -- lint demo root_sessions user_sessions packages cross fuzz user_test test pidns

suite=bookworm
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)

die() {
	echo "fresh.sh: $*" >&2
	exit 1
}
say() { printf '\n== %s\n' "$*"; }

[ "$(id -u)" = 0 ] || die "only root can make mounts, devices and users in namespaces (run this as root)"
go=${GO:-go}
command -v "$go" >/dev/null || die "$go is missing: the fresh root gets it besides Debian (install Go, or set GO)"
command -v unshare >/dev/null || die "unshare is missing: apt-get install util-linux"

cache=$(sh "$top/testvm/setup.sh" --print-cache)/fresh
mkdir -p "$cache"
if ! command -v debootstrap >/dev/null; then
	command -v apt-get >/dev/null || die "debootstrap is missing, and so is apt-get to install it"
	say "Installing debootstrap"
	{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install debootstrap; } >/dev/null ||
		die "debootstrap cannot be installed: see above"
fi

# archives prints the Debian archives that this machine uses, as lines "URI SUITE"; nothing on other
# systems.
archives() {
	apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
		awk -v suite=$suite 'index($2, suite) == 1' | sort -u
}
archives=$(archives)
if [ -z "$archives" ] && command -v apt-get >/dev/null; then
	apt-get -qq update || :
	archives=$(archives)
fi
mirror=$(echo "$archives" | awk -v suite=$suite '$2 == suite { print $1; exit }')

# make_base makes the minimal root. It appears completely or not at all; two runs at once make it
# once.
make_base() {
	exec 9>"$cache/lock"
	flock 9
	rm -rf "$cache"/.base.* # left by a run that was killed
	if [ ! -d "$cache/base-$suite" ]; then
		say "Making a minimal root in $cache (a minute)"
		tmp=$(mktemp -d "$cache/.base.XXXXXX")
		unshare --mount --pid --fork --kill-child --mount-proc \
			debootstrap --variant=minbase $suite "$tmp" ${mirror:+"$mirror"} >"$cache/debootstrap.log" 2>&1 9>&- ||
			{ tail -n 20 "$cache/debootstrap.log" >&2; die "debootstrap failed: see above and $cache/debootstrap.log"; }
		chmod 755 "$tmp"
		rm -f "$tmp"/var/cache/apt/archives/*.deb
		mv -T "$tmp" "$cache/base-$suite"
	fi
	exec 9>&-
}

make_base
say "Fetching Go's modules"
# `go mod tidy`, which lint runs without the network, wants the modules of their tests too.
(cd "$top" && "$go" mod download && { "$go" mod tidy -diff >/dev/null || :; } && "$go" -C internal/packaging/nfpm mod download && "$go" -C internal/release/sbom mod download)

# goenv prints Go's environment: modules come from this machine's cache first, then from its proxy.
goenv() {
	printf 'export GOTOOLCHAIN=local GOPROXY=file:///opt/modules,%s\n' "$("$go" env GOPROXY)"
	for name in GOFLAGS GOSUMDB GONOSUMDB GONOPROXY GOPRIVATE; do printf "export %s='%s'\n" $name "$("$go" env $name)"; done
}

cd "$top"
FRESH_BASE=$cache/base-$suite FRESH_DEBS=$cache/debs FRESH_BUILDS=$cache/builds FRESH_CHECKS=$cache/checks FRESH_AT=$cache/root FRESH_TOP=$top
FRESH_ARCHIVES=$archives FRESH_GOROOT=$("$go" env GOROOT) FRESH_MODULES=$("$go" env GOMODCACHE)/cache/download FRESH_GOENV=$(goenv)
export FRESH_BASE FRESH_DEBS FRESH_BUILDS FRESH_CHECKS FRESH_AT FRESH_TOP FRESH_ARCHIVES FRESH_GOROOT FRESH_MODULES FRESH_GOENV
mkdir -p "$FRESH_DEBS" "$FRESH_BUILDS" "$FRESH_CHECKS" "$FRESH_AT"

# The child ends with this shell, which passes signals on.
env --default-signal=INT,QUIT,HUP setpriv --pdeathsig KILL unshare --mount --propagation private sh "$here/root.sh" "$@" </dev/null &
child=$!
for signal in HUP INT TERM; do
	trap "kill -KILL $child 2>/dev/null; wait $child 2>/dev/null || :; trap - $signal; kill -$signal \$\$" $signal
done
wait $child
