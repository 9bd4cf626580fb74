#!/bin/sh
# Makes a Debian 12 machine ready to boot test guests: installs what is missing, and unpacks (never
# installs) Debian's cloud kernel into the cache directory. Does nothing where everything is there.
# Only packages need root.
#
#   setup.sh [--packages p1,p2]... [--kernel cloud|full]... [--dpdk] [--network-manager]
#   setup.sh --print-cache
#
#   --packages     more packages to install
#   --kernel       another kernel to unpack besides the cloud one; the full one is for lab hosts,
#                  whose modprobe and iw come with it
#   --dpdk         unpack DPDK's testpmd too, the guest of a vhost-user frontend that is not QEMU
#   --network-manager
#                  unpack NetworkManager too, which a network's uplink is tested beside
#   --print-cache  only print the cache directory
#   VMNET_CACHE    the cache directory; the default is /var/cache/vmnet for root, whose kernels all
#                  users boot, otherwise ${XDG_CACHE_HOME:-~/.cache}/vmnet
set -eu
exec </dev/null
export DEBIAN_FRONTEND=noninteractive
PATH=$PATH:/usr/sbin:/sbin
umask 022

# The QEMUs besides x86 are for tests of their machines. gcc is for the race detector, groff for the
# man pages, libcap2-bin has setcap, lz4 and xz unpack kernels. Of libvirt, these packages start no
# daemon.
# nftables and dnsmasq-base are what networks are made of: nft and dnsmasq, without a service.
# isc-dhcp-client is what guests of cloud images ask for an address with.
# iptables, ufw and firewalld (with Python, 30 MB) are the firewalls that networks are integrated
# with: ufw is off unless it is enabled, and for firewalld see without_services.
# passt has pasta, by which networks of users who are not root reach the world.
# openvswitch-switch has ovsdb-server and ovs-vswitchd, and the packages of OVN their daemons, which
# tests run by themselves. So is frr, which tells the hosts of a VXLAN segment where guests are.
# apparmor has apparmor_parser and aa-exec, for the profiles that lab hosts load.
# lldpd (10 MB) is what finds its neighbors over links that forward LLDP.
# netplan.io and ifupdown read what a network writes for the next boot; Debian's systemd has
# systemd-networkd.
packages='qemu-system-x86 qemu-system-arm qemu-system-misc qemu-system-ppc busybox-static lz4 xz-utils iproute2 gcc libc6-dev groff-base libcap2-bin procps libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients nftables dnsmasq-base isc-dhcp-client iptables ufw firewalld dbus-daemon passt openvswitch-switch ovn-central ovn-host frr netplan.io ifupdown apparmor lldpd'
# What these packages would start.
services='firewalld frr lldpd openvswitch-switch ovs-record-hostname ovn-central ovn-host'
kernels=cloud
dpdk=
manager=
updated=

say() { echo "setup.sh: $*"; }
die() {
    echo "setup.sh: $*" >&2
    exit 1
}

system=/var/cache/vmnet # testvm.SystemCacheDir
if [ -n "${VMNET_CACHE:-}" ]; then
    cache=$VMNET_CACHE
elif [ "$(id -u)" = 0 ]; then
    cache=$system
else
    cache=${XDG_CACHE_HOME:-${HOME:?set HOME or VMNET_CACHE}/.cache}/vmnet
fi

while [ $# -gt 0 ]; do
    case $1 in
    --packages) packages="$packages $(echo "${2:?--packages needs a list}" | tr , ' ')" && shift 2 ;;
    --kernel)
        kernels="$kernels ${2:?--kernel needs cloud or full}" && shift 2
        packages="$packages kmod iw"
        ;;
    --dpdk)
        dpdk=yes && shift
        packages="$packages libbsd0 libelf1 libfdt1 libibverbs1 ibverbs-providers libjansson4 libnuma1 libpcap0.8"
        ;;
    --network-manager) # not installed, since it would take this machine's interfaces
        manager=yes && shift
        packages="$packages libnm0 libndp0 libteamdctl0 libbluetooth3 libmm-glib0 libcurl3-gnutls"
        ;;
    --print-cache) echo "$cache" && exit ;;
    *) die "unknown argument $1 (known: --packages, --kernel, --dpdk, --network-manager, --print-cache)" ;;
    esac
done

command -v dpkg-query >/dev/null || die "this machine is not Debian: install qemu-system-x86_64, busybox (static), iproute2 and gcc by hand"

# apt shows its progress to people.
quiet=-qq
[ ! -t 1 ] || quiet=-q
apt() { apt-get $quiet -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 "$@"; }

# update refreshes the package lists, once a run.
update() {
    [ -z "$updated" ] || return 0
    [ "$(id -u)" = 0 ] || die "the package lists are missing or old: run 'apt-get update' as root, then this again"
    say "updating the package lists"
    apt update
    updated=yes
}

# missing prints those of its arguments that are not installed.
missing() {
    dpkg-query -W -f='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null |
        awk -v want="$*" '$2 == "installed" { have[$1] = 1 }
            END { n = split(want, w, " "); for (i = 1; i <= n; i++) if (!(w[i] in have)) print w[i] }'
}

# without_services runs its arguments, which may install packages with those services, so that no
# firewall begins to drop this machine's traffic and no switch starts, neither now nor at boot.
without_services() {
    new=
    for service in $services; do
        systemctl -q cat "$service.service" >/dev/null 2>&1 || new="$new $service.service"
    done
    if [ ! -d /run/systemd/system ] || [ -z "$new" ]; then
        "$@"
        return
    fi
    # shellcheck disable=SC2086 # a list of words, here and below
    systemctl -q mask $new
    "$@" && status=0 || status=$?
    # shellcheck disable=SC2086
    systemctl -q unmask $new
    # shellcheck disable=SC2086
    systemctl -q disable $new || true # they may not have been installed
    return $status
}

install_missing() {
    # shellcheck disable=SC2086 # a list of words, here and below
    need=$(missing $packages | tr '\n' ' ')
    [ -n "$need" ] || return 0
    [ "$(id -u)" = 0 ] || die "these packages are missing: $need(run this as root, or: apt-get install --no-install-recommends $need)"
    update
    say "installing, which may take some minutes: $need"
    # dpkg tells of each package twice: that is for where something fails.
    log=$(mktemp)
    # shellcheck disable=SC2086
    if without_services apt install -y --no-install-recommends $need >"$log"; then
        rm -f "$log"
    else
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "apt-get install failed: see above"
    fi
}

# image prints the package that the metapackage $1 stands for today.
image() {
    apt-cache depends "$1" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }'
}

# megabytes prints how many the packages have to download.
megabytes() {
    apt-cache --no-all-versions show "$@" | awk '$1 == "Size:" { n += $2 } END { printf "%.0f", n / 1e6 }'
}

# download puts the package of metapackage $1, the kernel for $2, into the current directory.
download() {
    name=$(image "$1")
    [ -n "$name" ] || { update && name=$(image "$1"); }
    [ -n "$name" ] || die "the package lists do not know $1: is this Debian 12 on amd64?"
    say "downloading the kernel of $2, $name ($(megabytes "$name") MB), to be unpacked into $cache"
    apt download "$name" && return 0
    update # the list names what the archive has replaced
    apt download "$(image "$1")"
}

# index_modules writes what modprobe reads for the kernel unpacked in $1.
index_modules() {
    for modules in "$1"/lib/modules/*; do
        [ -e "$modules/modules.dep.bin" ] || depmod -b "$1" "${modules##*/}"
    done
}

# expand_image unpacks the kernel image $1 to $2. Debian 12 packs its kernels by lz4 or xz; others
# stay as they are. Linux's Documentation/arch/x86/boot.rst has what is read of the header:
# setup_sects at 0x1f1, payload_offset and payload_length at 0x248. The payload's last four bytes
# are its size.
expand_image() {
    packed=$1 expanded=$2
    # shellcheck disable=SC2046 # numbers, here and below
    set -- $(od -An -tu1 -j 497 -N 1 "$packed") $(od -An -tu4 -j 584 -N 8 "$packed")
    begin=$((($1 + 1) * 512 + $2))
    case $(od -An -tx1 -j $begin -N 4 "$packed") in
    ' 02 21 4c 18') unpack=lz4 ;;
    ' fd 37 7a 58') unpack=xz ;;
    *) return ;;
    esac
    tail -c +$((begin + 1)) "$packed" | head -c $(($3 - 4)) | $unpack -dcq >"$expanded.$$" && mv "$expanded.$$" "$expanded" || rm -f "$expanded.$$"
}

# expand_images unpacks the images in $1/boot, so that guests need not: an emulated processor takes
# up to a second for it.
expand_images() {
    for image in "$1"/boot/vmlinuz-*; do
        expanded=$1/boot/vmlinux-${image##*/vmlinuz-}
        [ ! -s "$image" ] || [ -e "$expanded" ] || [ ! -w "$1/boot" ] || expand_image "$image" "$expanded"
    done
}

# unpacked reports whether there is a kernel of kind $1: in the cache directory, in that of the
# system, or where root's kernels were once.
unpacked() {
    [ ! -d "$cache/$1-kernel" ] || return 0
    [ -z "${VMNET_CACHE:-}" ] || return 1
    [ -r "$system/$1-kernel/boot" ] || [ -d "${XDG_CACHE_HOME:-${HOME:-}/.cache}/vmnet/$1-kernel" ]
}

# unpack_kernel makes $cache/$1-kernel out of metapackage $2, for $3. It appears whole or not at
# all.
unpack_kernel() {
    ! unpacked "$1" || return 0
    mkdir -p "$cache"
    tmp=$(mktemp -d "$cache/.$1-kernel.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 1' HUP INT TERM
    (cd "$tmp" && download "$2" "$3" && dpkg-deb -x ./*.deb tree) || die "$2 cannot be downloaded or unpacked: see above"
    chmod 755 "$tmp/tree"
    index_modules "$tmp/tree"
    expand_images "$tmp/tree"
    # Where another run was faster, its directory serves as well.
    mv -T "$tmp/tree" "$cache/$1-kernel" 2>/dev/null || [ -d "$cache/$1-kernel" ] || die "$cache/$1-kernel cannot be made: is it writable?"
    rm -rf "$tmp"
    trap - EXIT
}

# unpack_network_manager makes $cache/network-manager. It appears whole or not at all.
unpack_network_manager() {
    [ ! -d "$cache/network-manager" ] || return 0
    apt-cache show network-manager >/dev/null 2>&1 || update
    mkdir -p "$cache"
    tmp=$(mktemp -d "$cache/.network-manager.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 1' HUP INT TERM
    say "downloading network-manager ($(megabytes network-manager) MB), to be unpacked into $cache"
    (cd "$tmp" && { apt download network-manager || { update && apt download network-manager; }; } &&
        dpkg-deb -x ./*.deb tree) || die "network-manager cannot be downloaded or unpacked: see above"
    chmod 755 "$tmp/tree"
    mv -T "$tmp/tree" "$cache/network-manager" 2>/dev/null || [ -d "$cache/network-manager" ] ||
        die "$cache/network-manager cannot be made: is it writable?"
    rm -rf "$tmp"
    trap - EXIT
}

# libraries prints those of DPDK that testpmd is linked with, and its drivers of vhost-user devices.
# The packages' other dependencies are headers, which take 25 MB.
libraries() {
    only='--no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances'
    # shellcheck disable=SC2046,SC2086
    apt-cache depends --recurse $only librte-net-virtio23 librte-net-vhost23 $(apt-cache depends $only dpdk-dev |
        awk '$1 == "Depends:" && $2 ~ /^librte-/ { print $2 }') 2>/dev/null | grep '^librte-' | sort -u
}

# unpack_dpdk makes $cache/dpdk. It appears whole or not at all.
unpack_dpdk() {
    [ ! -d "$cache/dpdk" ] || return 0
    apt-cache show dpdk-dev >/dev/null 2>&1 || update
    need="dpdk-dev $(libraries)"
    mkdir -p "$cache"
    tmp=$(mktemp -d "$cache/.dpdk.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 1' HUP INT TERM
    # shellcheck disable=SC2086
    say "downloading DPDK's testpmd, dpdk-dev and its libraries ($(megabytes $need) MB), to be unpacked into $cache"
    # shellcheck disable=SC2086
    (cd "$tmp" && { apt download $need || { update && apt download $need; }; } &&
        for deb in ./*.deb; do dpkg-deb -x "$deb" tree || exit; done) || die "dpdk-dev cannot be downloaded or unpacked: see above"
    chmod 755 "$tmp/tree"
    # Where another run was faster, its directory serves as well.
    mv -T "$tmp/tree" "$cache/dpdk" 2>/dev/null || [ -d "$cache/dpdk" ] || die "$cache/dpdk cannot be made: is it writable?"
    rm -rf "$tmp"
    trap - EXIT
}

install_missing
[ -z "$manager" ] || unpack_network_manager
[ -z "$dpdk" ] || unpack_dpdk
for kernel in $kernels; do
    case $kernel in
    cloud) unpack_kernel cloud linux-image-cloud-amd64 "test guests" ;;
    full) unpack_kernel full linux-image-amd64 "lab hosts" ;;
    *) die "unknown kernel $kernel (known: cloud, full)" ;;
    esac
    expand_images "$cache/$kernel-kernel" # of an earlier setup
done
