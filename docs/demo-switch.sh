#!/usr/bin/env bash
# Two guests share their memory with a switch, and reach another host by its VXLAN port: without a
# bridge in the kernel, a tap, or any privilege. `make demo` runs it in network, process and mount
# namespaces of its own.
if [ "${1:-}" != unprivileged ]; then
	# The other host is a network namespace at the other end of a wire, with a switch of its own and
	# the address 10.7.0.9. Root makes it, and then gives up all that it may.
	set -eu
	bin=$(realpath "$(dirname "$0")/../bin")
	export OTHER
	OTHER=$(mktemp -d)
	mount -t tmpfs -o mode=0755 run /run
	unshare --net sleep infinity &
	host=$!
	until ip link add wire type veth peer name wire netns "$host" 2>/dev/null; do sleep 0.05; done
	ip addr add 192.0.2.1/24 dev wire
	ip link set wire up
	nsenter --target "$host" --net sh -c 'ip addr add 192.0.2.2/24 dev wire && ip link set wire up'
	nsenter --target "$host" --net "$bin/vmnet" switch run "$OTHER/sw" \
		--vxlan vni=77,remote=192.0.2.1 --tun host,address=10.7.0.9/24 >"$OTHER/log" 2>&1 &
	exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all bash "$0" unprivileged
fi
. "$(dirname "$0")/demo-common.sh"
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$XDG_RUNTIME_DIR" "$OTHER"' EXIT
cd "$XDG_RUNTIME_DIR" # for short paths

title "No capability, no bridge, no tap: a switch in userspace, with a VXLAN port to another host"
run grep CapEff /proc/self/status
printf '\033[36m$ vmnet switch run ./sw0 --vxlan vni=77,remote=192.0.2.2 &\033[0m\n'
vmnet switch run ./sw0 --vxlan vni=77,remote=192.0.2.2 &
for _ in $(seq 100); do [ -S sw0 ] && break; sleep 0.05; done

title "Two guests, whose memory can be shared"
shared='-object memory-backend-memfd,id=mem,size=128M,share=on -machine memory-backend=mem'
guest red -- $shared &
red=$!
guest blue -- $shared
wait "$red"

title "Each gets a port of the switch, which copies frames from memory to memory (vhost-user)"
run vmnet attach --vm red --switch ./sw0 --via vhost-user
run vmnet attach --vm blue --switch ./sw0 --via vhost-user --lock-mac
run testvm addr --name red eth0 10.7.0.2/24
run testvm addr --name blue eth0 10.7.0.3/24
run testvm ping --name red 10.7.0.3
run testvm ping --name blue 10.7.0.9 # on the other host
run vmnet list
run vmnet switch fdb ./sw0
run ip -brief link

title "A guest is killed: its port is removed"
qemu=$(vmnet list --vm red -o json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1)
run kill -9 "$qemu"
for _ in $(seq 100); do vmnet switch show ./sw0 | grep -q red-net0 || break; sleep 0.05; done
run vmnet switch show ./sw0
run vmnet check
if vmnet switch show ./sw0 | grep -q red-net0; then echo "red's port is still there"; exit 1; fi

printf '\nDone in %s s.\n' $(($(date +%s) - start))
