#!/bin/sh
# Makes a Debian 12 machine ready to boot test guests: installs what is missing,
# and unpacks (never installs) Debian's cloud kernel into the cache folder.
# Does nothing where everything is there.
#
#   setup.sh [--packages p1,p2]... [--kernel cloud|full]...
#
#   --packages   more packages to install
#   --kernel     another kernel to unpack besides the cloud one; the full one is
#                for lab hosts, whose modprobe and iw come with it
#   VMNET_CACHE  the cache folder; default ${XDG_CACHE_HOME:-~/.cache}/vmnet
set -eu
exec </dev/null
export DEBIAN_FRONTEND=noninteractive
PATH=$PATH:/usr/sbin:/sbin

# The QEMUs besides x86 are for tests of their machines. gcc is for the race detector, groff for the man pages, libcap2-bin has
# setcap. Of libvirt, these packages start no daemon.
packages='qemu-system-x86 qemu-system-arm qemu-system-misc qemu-system-ppc busybox-static iproute2 gcc libc6-dev groff-base libcap2-bin libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients'
kernels=cloud
updated=

die() {
    echo "setup.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --packages) packages="$packages $(echo "${2:?--packages needs a list}" | tr , ' ')" && shift 2 ;;
    --kernel)
        kernels="$kernels ${2:?--kernel needs cloud or full}" && shift 2
        packages="$packages kmod iw"
        ;;
    *) die "unknown argument $1 (known: --packages, --kernel)" ;;
    esac
done

cache=${VMNET_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or VMNET_CACHE}/.cache}/vmnet}
command -v dpkg-query >/dev/null || die "this machine is not Debian: install qemu-system-x86_64, busybox (static), iproute2 and gcc by hand"

apt() { apt-get -qq -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 "$@"; }

# update refreshes the package lists, once a run.
update() {
    [ -z "$updated" ] || return 0
    [ "$(id -u)" = 0 ] || die "the package lists are missing or old: run 'apt-get update' as root, then this again"
    apt update
    updated=yes
}

# missing prints those of its arguments that are not installed.
missing() {
    dpkg-query -W -f='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null |
        awk -v want="$*" '$2 == "installed" { have[$1] = 1 }
            END { n = split(want, w, " "); for (i = 1; i <= n; i++) if (!(w[i] in have)) print w[i] }'
}

install_missing() {
    # shellcheck disable=SC2086 # a list of words, here and below
    need=$(missing $packages | tr '\n' ' ')
    [ -n "$need" ] || return 0
    [ "$(id -u)" = 0 ] || die "these packages are missing: $need(run this as root, or: apt-get install --no-install-recommends $need)"
    update
    # shellcheck disable=SC2086
    apt install -y --no-install-recommends $need
}

# image prints the package that the metapackage $1 stands for today.
image() {
    apt-cache depends "$1" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }'
}

# download puts the package of metapackage $1 into the current folder.
download() {
    name=$(image "$1")
    [ -n "$name" ] && apt download "$name" && return 0
    update
    name=$(image "$1")
    [ -n "$name" ] || die "the package lists do not know $1: is this Debian 12 on amd64?"
    apt download "$name"
}

# index_modules writes what modprobe reads for the kernel unpacked in $1.
index_modules() {
    for modules in "$1"/lib/modules/*; do
        [ -e "$modules/modules.dep.bin" ] || depmod -b "$1" "${modules##*/}"
    done
}

# unpack_kernel makes $cache/$1-kernel out of metapackage $2. It appears whole or not at all.
unpack_kernel() {
    [ ! -d "$cache/$1-kernel" ] || return 0
    mkdir -p "$cache"
    tmp=$(mktemp -d "$cache/.$1-kernel.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 1' HUP INT TERM
    (cd "$tmp" && download "$2" && dpkg-deb -x ./*.deb tree) || die "unpack $2: see above"
    chmod 755 "$tmp/tree"
    index_modules "$tmp/tree"
    # Where another run was faster, its folder serves as well.
    mv -T "$tmp/tree" "$cache/$1-kernel" 2>/dev/null || [ -d "$cache/$1-kernel" ] || die "make $cache/$1-kernel"
    rm -rf "$tmp"
    trap - EXIT
}

install_missing
for kernel in $kernels; do
    case $kernel in
    cloud) unpack_kernel cloud linux-image-cloud-amd64 ;;
    full) unpack_kernel full linux-image-amd64 ;;
    *) die "unknown kernel $kernel (known: cloud, full)" ;;
    esac
done
