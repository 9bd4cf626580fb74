#!/bin/sh
# Installs what the benchmark compares with, on Debian 12, and starts nothing: of Open vSwitch,
# whose package starts its services, and of DPDK, the programs are only unpacked, into the cache
# directory. Does nothing where everything is there.
#
#   VMNET_CACHE  the cache directory; default ${XDG_CACHE_HOME:-~/.cache}/vmnet
set -eu
here=$(dirname "$0")
cache=${VMNET_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or VMNET_CACHE}/.cache}/vmnet}

sh "$here/../../../testvm/setup.sh" --dpdk --packages vde-switch,openvswitch-common,libc6-dev,gcc,util-linux,libunbound8,libxdp1,libbpf1

# unpack makes directory $1 of the cache out of package $2.
unpack() {
    [ ! -d "$cache/$1" ] || return 0
    tmp=$(mktemp -d "$cache/.$1.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 1' HUP INT TERM
    (cd "$tmp" && apt-get -qq -o APT::Sandbox::User=root download "$2" && dpkg-deb -x ./*.deb tree)
    chmod 755 "$tmp/tree"
    mv -T "$tmp/tree" "$cache/$1" 2>/dev/null || [ -d "$cache/$1" ]
    rm -rf "$tmp"
    trap - EXIT
}

unpack openvswitch openvswitch-switch
unpack openvswitch-dpdk openvswitch-switch-dpdk
