#!/usr/bin/env bash
# Two guests talk over a switch in userspace, without a bridge in the kernel, a tap, or any
# privilege. `make demo` runs it without capabilities, in network and process namespaces of its own.
. "$(dirname "$0")/demo-common.sh"
cd "$XDG_RUNTIME_DIR" # for short paths

title "No capability, no bridge, no tap: a switch in userspace, and two guests"
run grep CapEff /proc/self/status
printf '\033[36m$ vmnet switch run ./sw0 &\033[0m\n'
vmnet switch run ./sw0 &
for _ in $(seq 100); do [ -S sw0 ] && break; sleep 0.05; done
guest red &
red=$!
guest blue
wait "$red"

title "Each gets a port of the switch while it runs"
run vmnet attach --vm red --switch ./sw0
run vmnet attach --vm blue --switch ./sw0 --lock-mac
run testvm addr --name red eth0 10.7.0.2/24
run testvm addr --name blue eth0 10.7.0.3/24
run testvm ping --name red 10.7.0.3
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
