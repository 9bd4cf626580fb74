# Shell functions that prepare a mount namespace for a private libvirtd. The tests and
# docs/libvirt-shell.sh share them.

# private_dirs mounts empty directories over /run, /var and /etc. The new /etc has the files that
# programs need to start, and the user and group that libvirtd looks up before it reads its
# configuration. (The package with libvirt's units would create them, and is otherwise not needed.)
# Test guests' kernels keep their paths, and so does /run/vmnet if it is there: in it, QEMUs and
# switches find each other.
private_dirs() {
	cache=${VMNET_CACHE:-/var/cache/vmnet}
	if [ -d /run/vmnet ]; then
		exec 9</run/vmnet
		mount -t tmpfs none /run
		mkdir /run/vmnet && mount -c --bind /proc/self/fd/9 /run/vmnet # the path of fd 9 is hidden
		exec 9<&-
	else
		mount -t tmpfs none /run
	fi
	if [ -d "$cache" ]; then mkdir /run/cache && mount --bind "$cache" /run/cache; fi
	mount -t tmpfs none /var
	if [ -d /run/cache ]; then mkdir -p "$cache" && mount --move /run/cache "$cache" && rmdir /run/cache; fi
	mkdir -p /var/etc/libvirt /var/tmp /run/lock
	ln -s /run /var/run
	for file in passwd group nsswitch.conf ld.so.cache machine-id bash.bashrc; do
		[ ! -e "/etc/$file" ] || cp "/etc/$file" /var/etc
	done
	[ ! -d /etc/alternatives ] || cp -a /etc/alternatives /var/etc # iptables is a link into it
	grep -q '^libvirt-qemu:' /var/etc/group || echo 'libvirt-qemu:x:64055:' >>/var/etc/group
	grep -q '^libvirt-qemu:' /var/etc/passwd || echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin' >>/var/etc/passwd
	mount --bind /var/etc /etc
	one_qemu
}

# one_qemu hides the QEMUs of other architectures: libvirtd runs every QEMU that it finds to probe
# its capabilities, and serves no client before that.
one_qemu() {
	for qemu in /usr/bin/qemu-system-*; do
		case $qemu in
		*-x86_64 | *-i386) ;;
		*) [ ! -x "$qemu" ] || mount --bind /dev/null "$qemu" ;;
		esac
	done
}

# private_conf configures libvirtd; $1 has lines for libvirtd.conf and $2 for qemu.conf. Control
# groups are off because a machine may have none. So are the log daemon, security drivers, and the
# change of user.
private_conf() {
	printf 'auth_unix_rw = "none"\n%s\n' "$1" >/etc/libvirt/libvirtd.conf
	cat >/etc/libvirt/qemu.conf <<-E
		user = "root"
		group = "root"
		security_driver = "none"
		stdio_handler = "file"
		cgroup_controllers = []
		$2
	E
}
