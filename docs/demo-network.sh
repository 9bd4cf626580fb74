#!/usr/bin/env bash
# Networks with NAT, DHCP and DNS: one of root, on a bridge, and one of a user without any
# privilege, on a switch in userspace. `make demo` runs it as root in network, mount and process
# namespaces of its own, which are the whole world here: the host, and another machine outside.
. "$(dirname "$0")/demo-common.sh"

# as_user COMMAND... runs it as the user nobody, without a capability, who cannot gain one.
home=$XDG_RUNTIME_DIR/home
as_user() {
	env HOME="$home" XDG_RUNTIME_DIR="$home" PATH="$home/bin:$PATH" setpriv --reuid 65534 --regid 65534 \
		--clear-groups --bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs "$@"
}
run_as_user() { printf '\033[36muser$ %s\033[0m\n' "$*"; as_user "$@"; }


title "A host with a way to a machine outside"
chmod 711 "$XDG_RUNTIME_DIR"
dirs="--config-dir $XDG_RUNTIME_DIR/networks.d --state-dir $XDG_RUNTIME_DIR/state"
unshare --net sleep 1000 &
outside=$!
ip link set lo up
for _ in $(seq 100); do [ "$(readlink /proc/$outside/ns/net)" != "$(readlink /proc/$$/ns/net)" ] && break; sleep 0.05; done
run ip link add eth0 type veth peer name eth0 netns "$outside"
run ip addr add 203.0.113.2/24 dev eth0
run ip link set eth0 up
run ip route add default via 203.0.113.1
nsenter -t "$outside" -n sh -c 'ip addr add 203.0.113.1/24 dev eth0; ip link set eth0 up; ip link set lo up'
printf '#!/bin/sh\necho "hello from outside"\n' >"$XDG_RUNTIME_DIR/hello"
chmod +x "$XDG_RUNTIME_DIR/hello"
nsenter -t "$outside" -n busybox nc -ll -p 80 -e "$XDG_RUNTIME_DIR/hello" &
echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range # as systemd sets it

title "Root's network: a bridge, rules, a server"
run vmnet network create lab --nat --dhcp $dirs
guest P2
run vmnet attach --vm P2 --network lab
run testvm dhcp --name P2 eth0
run testvm ping --name P2 203.0.113.1
run testvm exec --name P2 -- sh -c 'sleep 1 | nc 203.0.113.1 80'
run vmnet network leases lab $dirs
run testvm poweroff --name P2
for _ in $(seq 100); do ip -o link show | grep -q P2-net0 || break; sleep 0.05; done
run vmnet network delete lab $dirs

title "The same for a user without any privilege"
mkdir "$home"
cp -r bin "$home/bin" # a user may not be let to the sources of root
tun=$XDG_RUNTIME_DIR/tun
[ "$(stat -c %a /dev/net/tun)" = 666 ] || { mknod -m 666 "$tun" c 10 200; mount --bind "$tun" /dev/net/tun; } # as udev makes it
chown -R 65534:65534 "$home"
cd "$home"
run_as_user grep CapEff /proc/self/status
run_as_user vmnet network create lab --nat --dhcp
cat >"$home/launch" <<'EOF'
#!/bin/sh
exec qemu-netup --network lab -- qemu-system-x86_64 "$@"
EOF
chmod +x "$home/launch"
tail -n 1 "$home/launch"
for name in red blue; do
	printf '\033[36muser$ testvm run --name %s --qemu launch &\033[0m\n' "$name"
	as_user testvm run --name "$name" --qemu "$home/launch" >"$home/$name.log" 2>&1 &
done
for name in red blue; do
	for _ in $(seq 300); do grep -q 'runs with pid' "$home/$name.log" && break; sleep 0.1; done
	cat "$home/$name.log"
	grep -q 'runs with pid' "$home/$name.log"
done
for name in red blue; do run_as_user testvm dhcp --name "$name" eth0; done
for _ in $(seq 50); do as_user testvm exec --name red -- nslookup -type=a blue.lab.internal >/dev/null 2>&1 && break; sleep 0.2; done
run_as_user testvm exec --name red -- ping -c 3 blue
run_as_user testvm ping --name red 203.0.113.1
run_as_user testvm exec --name blue -- sh -c 'sleep 1 | nc 203.0.113.1 80'
run_as_user vmnet network show lab | grep -v '^[[:space:]]*[{}]\|^	\|^table\|^dnsmasq\|^pasta\|^$'
run_as_user ps -eo pid,ppid,user,args --forest | grep -v 'ps -eo' | grep -A3 'network serve' | cut -c 1-100

title "Killed: nothing of it is left"
run_as_user kill -9 "$(as_user vmnet network show lab | sed -n 's/.*supervisor, //p')"
for _ in $(seq 100); do as_user vmnet network list | grep -q absent && break; sleep 0.05; done
run_as_user vmnet network list
run_as_user vmnet network delete lab
for name in red blue; do as_user testvm poweroff --name "$name"; done

printf '\nDone in %s s.\n' $(($(date +%s) - start))
