#!/bin/sh
# Installs what the benchmark compares with, on Debian 12, and starts nothing: of Open vSwitch,
# whose package starts its services, the programs are only unpacked, into the cache directory. Does
# nothing where everything is there.
#
#   VMNET_CACHE  the cache directory; default ${XDG_CACHE_HOME:-~/.cache}/vmnet
set -eu
here=$(dirname "$0")
cache=${VMNET_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or VMNET_CACHE}/.cache}/vmnet}

sh "$here/../../../testvm/setup.sh" --packages vde-switch,openvswitch-common,libc6-dev,gcc,util-linux
[ ! -d "$cache/openvswitch" ] || exit 0
tmp=$(mktemp -d "$cache/.openvswitch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
(cd "$tmp" && apt-get -qq -o APT::Sandbox::User=root download openvswitch-switch && dpkg-deb -x ./*.deb tree)
chmod 755 "$tmp/tree"
mv -T "$tmp/tree" "$cache/openvswitch" 2>/dev/null || [ -d "$cache/openvswitch" ]
