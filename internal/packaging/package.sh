#!/bin/sh
# Makes packages of this tree in the directory $2, for the Makefile:
#
#   package.sh deb|rpm DIR ARCH...    ARCH as Go names it: amd64, arm64, riscv64
#   BUILT                             a directory that keeps the programs for another run
#   MAINTAINER                        who distributes the packages: "NAME <ADDRESS>"
#
# What is in them is what internal/install/install.sh installs, in the form that the distributions
# want. The same commit and the same Go give the same bytes. Programs for other machines are
# cross-built; only those of this machine are run.
set -eu
umask 022
export LC_ALL=C TZ=UTC CGO_ENABLED=0 GOOS=linux GOAMD64=v1
kind=$1 out=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)

die() { echo "package: $*" >&2; exit 1; }

# time prints when the sources were committed.
time() {
	git -C "$top" log -1 --format=%ct 2>/dev/null ||
		awk '$2 ~ /^[0-9]+$/ { print $2 }' "$top/internal/cli/version/commit.txt"
}

# build builds for the architecture $1 in $built/$1.
build() {
	[ ! -e "$built/$1/prefix" ] || return 0
	[ -d "$built/man" ] || make --no-print-directory -C "$top" man BIN="$built" >&2
	GOARCH=$1 make --no-print-directory -C "$top" programs BIN="$built/$1" PREFIX=/usr >&2
	ln -sfn ../man "$built/$1/man"
}

# stage lays out root for the architecture $1. The directories in /etc are for what the
# administrator writes there.
stage() {
	rm -rf root apparmor.d
	mkdir -p root/etc/apparmor.d
	(cd "$top" && DESTDIR=$work/root PREFIX=/usr BIN=$built/$1 PRIVILEGE=none GROUP='' \
		COMPLETER=$built/$host/vmnet ZSH_SITE=$zsh sh internal/install/install.sh install) >/dev/null
	rm root/usr/share/doc/vmnet/files
	mv root/etc/apparmor.d .
	mkdir -p root/etc/vmnet/guests.d root/etc/vmnet/networks.d root/etc/vmnet/switch
	find root/usr/share/man -type f -exec gzip -9n {} +
	"documents_$kind"
}

# documents_deb has the files that Debian Policy wants in chapter 12.
documents_deb() {
	doc=root/usr/share/doc/vmnet
	{
		echo 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/'
		echo 'Upstream-Name: vmnet'
		echo
		echo 'Files: *'
		echo "Copyright: $(date -u -d "@$SOURCE_DATE_EPOCH" +%Y) the vmnet maintainers"
		echo 'License: Apache-2.0'
		echo ' On Debian systems, the full text of the Apache License, Version 2.0, is in'
		echo ' /usr/share/common-licenses/Apache-2.0.'
	} >$doc/copyright
	rm $doc/LICENSE
	{
		printf 'vmnet (%s) unstable; urgency=medium\n\n  * CHANGELOG.md.gz beside this file says what is new.\n\n' "$version"
		printf ' -- %s  %s\n' "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
	} | gzip -9n >$doc/changelog.gz
	gzip -9n $doc/CHANGELOG.md
	install -D -m 0644 "$here/deb/lintian-overrides" root/usr/share/lintian/overrides/vmnet
}

documents_rpm() { :; }

case $kind in
deb) zsh=share/zsh/vendor-completions ;;
rpm) zsh=share/zsh/site-functions ;;
*) die "$kind: want deb or rpm" ;;
esac
[ $# -gt 0 ] || die "for which architecture? (ARCHES=amd64)"
version=$(sed -n 's/^const Number = "\(.*\)"$/\1/p' "$top/internal/cli/version/version.go")
caps=$(sed -n 's/^caps=//p' "$top/internal/install/install.sh")
[ -n "$version" ] && [ -n "$caps" ] || die "the version or the capabilities are not where they were"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(time)}
[ -n "$SOURCE_DATE_EPOCH" ] || die "the time of the sources is not known: package a git checkout, or set SOURCE_DATE_EPOCH"
maintainer=${MAINTAINER:-vmnet maintainers <maintainers@localhost>}
host=$(go env GOHOSTARCH)
nfpm=$(GOARCH=$host GOFLAGS=-buildvcs=false go -C "$here/nfpm" tool -n nfpm) || die "nfpm cannot be built: see above"

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
built=${BUILT:-$work/built}
mkdir -p "$built"
cp -r "$here/deb" "$here/rpm" "$here/nfpm.yaml" "$work"
cd "$work"
sed -i "s/@CAPS@/$caps/" deb/* rpm/*
export SOURCE_DATE_EPOCH VERSION="$version" MAINTAINER="$maintainer"
build "$host"
for arch in "$@"; do
	[ "$arch" = "$host" ] || build "$arch"
	stage "$arch"
	ARCH=$arch "$nfpm" package --config nfpm.yaml --packager "$kind" --target "$out" >&2
done
