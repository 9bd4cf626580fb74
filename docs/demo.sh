#!/usr/bin/env bash
# The main job of vmnet, shown on a real guest. `make demo` runs it in network and process
# namespaces of its own, so that it does not touch the machine, and everything ends with the script.
. "$(dirname "$0")/demo-common.sh"

title "A bridge, and a guest that is not connected to it"
ip link set lo up
run vmnet bridge create br0 --address 10.7.0.1/24
guest P2 --machine q35 --cpus 2 --spare-ports 2
run testvm links --name P2

title "The guest gets a NIC while it runs"
run vmnet attach --vm P2 --bridge br0 --queues 2
run testvm addr --name P2 eth0 10.7.0.2/24
run testvm ping --name P2 10.7.0.1
run vmnet list
run vmnet show P2

title "A second one comes and goes"
run vmnet attach --vm P2 --bridge br0 --nic net1
run vmnet list
run vmnet detach --vm P2 --nic net1
run vmnet list
run testvm ping --name P2 10.7.0.1
run vmnet check

title "And one directly on a parent device, which is connected to a peer outside"
run ip link add eth1 type veth peer name peer0
run ip addr add 10.8.0.1/24 dev peer0
ip link set eth1 up
ip link set peer0 up
run vmnet attach --vm P2 --macvtap eth1 --nic net1
run testvm addr --name P2 eth1 10.8.0.2/24
run testvm ping --name P2 10.8.0.1
run vmnet list

title "A guest that has its NIC from the start: qemu-netup executes its QEMU"
cat >"$XDG_RUNTIME_DIR/launch" <<'EOF'
#!/bin/sh
exec qemu-netup --bridge br0 --queues 2 -- qemu-system-x86_64 "$@"
EOF
chmod +x "$XDG_RUNTIME_DIR/launch"
tail -n 1 "$XDG_RUNTIME_DIR/launch"
guest P3 --cpus 2 --qemu "$XDG_RUNTIME_DIR/launch"
run testvm addr --name P3 eth0 10.7.0.3/24
run testvm ping --name P3 10.7.0.2
run vmnet list
run vmnet map
[ -z "${MAP:-}" ] || vmnet map --svg >"$MAP" # the README's picture
run vmnet detach --vm P3 --nic net0

title "QEMU is killed: nothing is left, without any cleanup"
qemu=$(vmnet list -o json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1)
run kill -9 "$qemu"
for _ in $(seq 100); do ip -o link show | grep -q P2-net0 || break; sleep 0.05; done
run ip -brief link
run vmnet list
if ip -o link show | grep -q P2-net0; then echo "P2-net0 is still there"; exit 1; fi

printf '\nDone in %s s.\n' $(($(date +%s) - start))
