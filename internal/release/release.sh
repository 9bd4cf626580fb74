#!/bin/sh
# Makes a release of the last commit in the directory $1, for the Makefile:
#
#   vmnet-VERSION.tar.gz              the sources, for packagers
#   vmnet-VERSION-linux-ARCH.tar.gz   what make install installs below PREFIX, for this architecture
#   PROGRAM-VERSION-linux-ARCH.cdx.json
#                                     the modules in each of these programs (SBOM, CycloneDX)
#   vmnet_VERSION_ARCH.deb, .rpm      the packages of internal/packaging, for ARCHES
#   vmnet-VERSION.md                  the release notes: the version's section of CHANGELOG.md
#   SHA256SUMS                        of these
#
#   PACKAGES                          the kinds of packages (deb rpm); empty for none
#   ARCHES                            the machines they are for (amd64 arm64)
#
# The same commit and the same Go give the same bytes, whatever directory, user and machine they are
# made in: sha256sum --check compares. A tree without git, as the unpacked sources are, is released
# as it stands.
set -eu
umask 022
export LC_ALL=C TZ=UTC
out=$1
top=$(cd "$(dirname "$0")/../.." && pwd)

die() { echo "release: $*" >&2; exit 1; }

# sources copies the tree that is released to $1.
sources() {
	mkdir -p "$1"
	if git -C "$top" rev-parse --verify -q HEAD >/dev/null 2>&1 && [ -e "$top/.git" ]; then
		[ -z "$(git -C "$top" status --porcelain)" ] || echo "release: what is not committed is left out" >&2
		git -C "$top" archive HEAD | tar -x -C "$1"
	else
		(cd "$top" && find . \( -path ./bin -o -path ./dist -o -path ./.git \) -prune -o ! -type d -print0 | tar --null --files-from - --create) | tar -x -C "$1"
	fi
}

# pack makes the archive $1 of the directory $2 beside it: nothing in it tells where, when and by
# whom it was made.
pack() {
	tar --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode='u+rw,go=rX,a-s' \
		--directory "$work" --create "$2" | gzip -n >"$1"
}

# notes prints the section of a version, or what is not released yet.
notes() {
	awk -v want="$1" '
		/^## / { name = $2; gsub(/[][v]/, "", name); in_it = name == want; next }
		in_it { print }
	' "$work/$name/CHANGELOG.md" | sed -e '/./,$!d'
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sources "$work/tree"
version=$(sed -n 's/^const Number = "\(.*\)"$/\1/p' "$work/tree/internal/cli/version/version.go")
[ -n "$version" ] || die "internal/cli/version/version.go has no line const Number = \"VERSION\""
name=vmnet-$version
mv "$work/tree" "$work/$name"

# The time of all files is the commit's.
read -r _ time <"$work/$name/internal/cli/version/commit.txt"
case $time in *[!0-9]* | '') time= ;; esac
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$time}
[ -n "$SOURCE_DATE_EPOCH" ] || die "the time of the sources is not known: release a commit of a git checkout, or set SOURCE_DATE_EPOCH"
export SOURCE_DATE_EPOCH

text=$(notes "$version")
if [ -z "$text" ]; then
	echo "release: CHANGELOG.md has no section \"## $version\": the notes are those of \"## Unreleased\"" >&2
	text=$(notes Unreleased)
fi
[ -n "$text" ] || die "CHANGELOG.md says nothing about $version"

mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out"/vmnet-*.tar.gz "$out"/vmnet-*.md "$out"/*.cdx.json "$out"/vmnet*.deb "$out"/vmnet*.rpm "$out/SHA256SUMS"
pack "$out/$name.tar.gz" "$name"

# Neither the caller's flags nor the repository around the directory get into the programs.
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOOS=linux GOARCH="$(go env GOHOSTARCH)" GOAMD64=v1 GOWORK=off
built=$name-linux-$GOARCH
cd "$work/$name"
make --no-print-directory build BIN="$work/bin" PREFIX="$PREFIX" >&2
make --no-print-directory install BIN="$work/bin" DESTDIR="$work/stage" PREFIX="$PREFIX" PRIVILEGE=none >&2
mv "$work/stage$PREFIX" "$work/$built"
pack "$out/$built.tar.gz" "$built"

# Each list has a hash of the program that writes it, so that is built alike everywhere.
lister=$(GOFLAGS='-trimpath -buildvcs=false' go -C internal/release/sbom tool -n cyclonedx-gomod) ||
	die "cyclonedx-gomod cannot be built: see above"
for program in vmnet vmnet-hook vmnet-cni qemu-netup qemu-netup-full; do
	"$lister" bin -json -std -noserial -notimestamp -version "$version" \
		-output "$out/$program-$version-linux-$GOARCH.cdx.json" "$work/bin/$program" >&2
done

for kind in ${PACKAGES-deb rpm}; do
	# shellcheck disable=SC2086 # a list of words
	BUILT=$work/built sh internal/packaging/package.sh "$kind" "$out" ${ARCHES:-amd64 arm64} >&2
done

printf '%s\n' "$text" >"$out/$name.md"
cd "$out"
find . -maxdepth 1 -type f \( -name '*.tar.gz' -o -name '*.cdx.json' -o -name '*.deb' -o -name '*.rpm' -o -name '*.md' \) \
	-printf '%P\n' | sort | xargs sha256sum >SHA256SUMS
cat SHA256SUMS
