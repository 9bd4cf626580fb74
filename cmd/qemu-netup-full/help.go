package main

import "strings"

const synopsis = `qemu-netup gives a guest its NICs at launch. It is installed setuid root, or with the file capability
CAP_NET_ADMIN, and serves users as /etc/qemu/bridge.conf and /etc/vmnet/policy.yaml allow.

  qemu-netup [OPTION]... [--next-nic [OPTION]...]... -- PROGRAM [ARGUMENT]...
      makes the NICs, adds them to the command line of PROGRAM, and becomes it: QEMU, or any other
      VMM, which gets them in place of {vmnet}, or with --vmm env in VMNET_ARGS and VMNET_JSON
  qemu-netup [--profile NAME] [PORT OPTION]... [--use-vnet] --br=BRIDGE --fd=NUMBER
      instead of qemu-bridge-helper: -netdev bridge,br=br0,helper=/usr/local/bin/qemu-netup
  qemu-netup ifup TAP, qemu-netup ifdown TAP; as qemu-ifup and qemu-ifdown: TAP
      put a tap that QEMU made on its bridge, and take it off: -netdev tap,script=qemu-ifup

Examples:
  qemu-netup --bridge br0 -- qemu-system-x86_64 -name guest=P2 -m 1G disk.img
  qemu-netup --bridge br0 --queues 4 --next-nic --macvtap eth0 --qmp auto -- qemu-system-x86_64 -M q35 -smp 4 -name guest=P2 disk.img
  qemu-netup --switch sw0 -- qemu-system-x86_64 -name guest=P2 -m 1G disk.img
  qemu-netup --vm P3 --bridge br0 -- ./my-vmm --net {vmnet}

Options:
`

const closing = `
Exit status: PROGRAM's own; 1 for a failure before it runs, 2 for wrong usage (in the form of
qemu-bridge-helper always 1). See qemu-netup(8), bridge.conf(5), policy.yaml(5).
`

func helpText() string {
	f := newFlags()
	newLaunchOptions().flags(f)
	f.String("profile", "", profileUsage)
	return synopsis + strings.TrimRight(f.FlagUsages(), "\n") + "\n      --next-nic                   the options that follow describe another NIC\n" + closing
}
