#!/bin/sh
# Boots systemd as the first process of a machine: boot.sh ROOT CGROUP. It begins in namespaces of
# its own for mounts, processes, the network and the name of the host; ROOT is the machine's file
# system, and CGROUP the directory of the second version's hierarchy that the machine sees as all.
set -eu
echo $$ >"$2/cgroup.procs"
exec unshare --cgroup sh -c '
set -eu
cd "$0"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=755 dev dev
for name in null zero full random urandom tty; do : >dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/net dev/pts dev/shm
mknod -m 666 dev/net/tun c 10 200 # as udev makes it
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
pivot_root . mnt
umount -l /mnt
hostname packages
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --unit=multi-user.target --show-status=no
' "$1"
