#!/bin/sh
# Runs in the mount namespace of fresh.sh: lays out the root, enters it, and runs the steps there.
set -eu
here=$(dirname "$0")

# lay_out mounts the root at $1, with a tmpfs for everything that is written.
lay_out() {
	mount -t tmpfs -o mode=755,size=80% fresh "$1"
	mkdir "$1/upper" "$1/work" "$1/root"
	mount -t overlay -o "lowerdir=$FRESH_BASE,upperdir=$1/upper,workdir=$1/work" fresh "$1/root"
	cd "$1/root"
	mount -t proc proc proc
	mount -t sysfs sysfs sys
	mount -t tmpfs -o mode=755 run run
	mount --bind /dev dev
	# As udev makes it: users' networks need it.
	[ ! -e dev/net/tun ] || { mknod -m 666 run/tun c 10 200 && mount --bind run/tun dev/net/tun; }
	mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
	mount -t tmpfs -o mode=1777 shm dev/shm
	mkdir -p usr/local/go opt/modules opt/debs root/.cache/go-build root/.cache/staticcheck home/user/.cache/go-build
	mount --bind -o ro "$FRESH_GOROOT" usr/local/go
	mount --bind -o ro "$FRESH_MODULES" opt/modules
	mount --bind "$FRESH_DEBS" opt/debs
	# Both users have one cache. With -trimpath (see settle_in) it serves both trees.
	for at in root home/user; do mount --bind "$FRESH_BUILDS" $at/.cache/go-build; done
	mount --bind "$FRESH_CHECKS" root/.cache/staticcheck # what lint knows of other modules
}

# settle_in configures the root at . like an installed machine: a name, a user, Go, and network
# access.
settle_in() {
	cat /etc/resolv.conf >etc/resolv.conf
	cat /etc/hosts >etc/hosts
	echo 766d6e65742d6672657368000000000a >etc/machine-id # MACs derive from it, and the order of lists from them
	apt-config dump 2>/dev/null | grep '^Acquire::' >etc/apt/apt.conf.d/80host || :
	if [ -n "$FRESH_ARCHIVES" ]; then
		echo "$FRESH_ARCHIVES" | sed 's/.*/deb & main/' >etc/apt/sources.list
	fi
	cp "$FRESH_DEBS"/*.deb var/cache/apt/archives 2>/dev/null || :
	# As https://go.dev/doc/install says; modules come from what this machine has fetched.
	{
		echo 'export PATH=$PATH:/usr/local/go/bin'
		echo "$FRESH_GOENV"
		echo 'export GOFLAGS="$GOFLAGS -trimpath"'
	} >etc/profile.d/go.sh
	chroot . useradd --home-dir /home/user --shell /bin/bash --uid 1000 user # the directory is there
	cp etc/skel/.[!.]* home/user
	copy_sources root/vmnet
	copy_sources home/user/vmnet
	# These directories of the cache are the user's: each of both can write there.
	(cd home/user/.cache/go-build && mkdir -p fuzz && for n in $(seq 0 255); do mkdir -p "$(printf %02x "$n")"; done)
	chroot . chown -R user:user /home/user
}

# sources lists the files of the tree that git does not ignore, each terminated by a NUL byte.
sources() {
	git -c safe.directory="$FRESH_TOP" -C "$FRESH_TOP" ls-files -z --cached --others --exclude-standard 2>/dev/null ||
		(cd "$FRESH_TOP" && find . -path ./bin -prune -o -path ./.git -prune -o ! -type d -print0)
}

# copy_sources copies the sources to $1.
copy_sources() {
	mkdir "$1"
	sources | (cd "$FRESH_TOP" && tar --null --files-from - --ignore-failed-read --create) | tar --extract --no-same-owner --directory "$1"
}

lay_out "$FRESH_AT"
settle_in
pivot_root . mnt
exec chroot . /bin/sh /root/vmnet/internal/fresh/steps.sh --inside "$@"
