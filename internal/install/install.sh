#!/bin/sh
# Installs the files built in $BIN into $DESTDIR$PREFIX, or removes them; for the Makefile. It
# builds nothing and needs no Go. It stores a list of the installed files: uninstall removes those
# and nothing else.
set -eu
umask 022
PATH=$PATH:/usr/sbin:/sbin # for setcap: root's PATH may lack them
to=$DESTDIR$PREFIX
ours="lib/cni libexec/vmnet share/doc/vmnet/examples share/doc/vmnet/grafana share/doc/vmnet" # directories, innermost first
list=share/doc/vmnet/files
apparmor=/etc/apparmor.d

die() { echo "install: $*" >&2; exit 2; }

# put MODE FROM TO copies a file; link TARGET TO makes a symbolic link.
put() { place "$3"; install -T -m "$1" "$2" "$to/$3"; }
link() { place "$2"; ln -sfn "$1" "$to/$2"; }
place() { mkdir -p "$to/$(dirname "$1")"; echo "$1" >>"$new"; }

# made TO installs what a program writes, from standard input.
made() { place "$1"; cat >"$to/$1"; chmod 0644 "$to/$1"; }

# remove removes the files in the list on standard input.
remove() {
	while IFS= read -r file; do
		case $file in
		$apparmor/*[!a-z-]*) die "$to/$list names $file" ;;
		$apparmor/*) rm -f "$DESTDIR$file" && continue ;;
		esac
		case /$file/ in *//* | */../*) die "$to/$list names $file" ;; esac
		rm -f "$to/$file"
	done
}

# built checks that all files exist, and were built for this PREFIX.
built() {
	for file in vmnet vmnet-hook vmnet-cni qemu-netup qemu-netup-full prefix man/vmnet.8; do
		[ -e "$BIN/$file" ] || die "nothing to install: $BIN/$file is missing (run 'make build' first, as yourself)"
	done
	[ "$(cat "$BIN/prefix")" = "$PREFIX" ] ||
		die "$BIN was built for PREFIX=$(cat "$BIN/prefix") (run 'make build PREFIX=$PREFIX' first)"
}

check() {
	[ -z "$GROUP" ] || [ "$PRIVILEGE" = none ] || getent group "$GROUP" >/dev/null || die "there is no group $GROUP (groupadd --system $GROUP)"
	case $PRIVILEGE in
	none) [ -z "$GROUP" ] || die "GROUP=$GROUP goes with PRIVILEGE=setuid or setcap" ;;
	setuid | setcap) [ "$(id -u)" = 0 ] || die "only root can give PRIVILEGE=$PRIVILEGE" ;;
	*) die "PRIVILEGE=$PRIVILEGE: want none, setuid or setcap" ;;
	esac
	[ "$PRIVILEGE" != setcap ] || command -v setcap >/dev/null || die "there is no setcap (apt install libcap2-bin)"
}

# The capabilities of PRIVILEGE=setcap. cap_bpf and cap_perfmon load the programs of port security
# and rates; qemu-netup gives them up where nobody asks for those.
caps=cap_net_admin,cap_bpf,cap_perfmon+ep

# netup installs the helper last, and gives it its privilege once it is complete. The program that
# it executes for most of its forms has no privilege of its own.
netup() {
	put 0755 "$BIN/qemu-netup-full" libexec/vmnet/qemu-netup-full
	others=5
	[ -z "$GROUP" ] || others=0
	case $PRIVILEGE in
	none) put 0755 "$BIN/qemu-netup" bin/qemu-netup ;;
	setuid)
		place bin/qemu-netup
		install -T -o root -g "${GROUP:-root}" -m "475$others" "$BIN/qemu-netup" "$to/bin/qemu-netup"
		;;
	setcap)
		place bin/qemu-netup
		install -T -o root -g "${GROUP:-root}" -m "075$others" "$BIN/qemu-netup" "$to/bin/qemu-netup"
		setcap "$caps" "$to/bin/qemu-netup"
		;;
	esac
	for name in qemu-bridge-helper qemu-ifup qemu-ifdown; do
		link ../../bin/qemu-netup "libexec/vmnet/$name"
	done
}

# For packages, COMPLETER is a vmnet that runs on this machine, and ZSH_SITE is where the zsh of a
# distribution looks.
documents() {
	completer=${COMPLETER:-$BIN/vmnet}
	for page in "$BIN"/man/*; do
		put 0644 "$page" "share/man/man${page##*.}/${page##*/}"
	done
	"$completer" completion bash | made share/bash-completion/completions/vmnet
	"$completer" completion zsh | made "${ZSH_SITE:-share/zsh/site-functions}/_vmnet"
	"$completer" completion fish | made share/fish/vendor_completions.d/vmnet.fish
	put 0644 docs/completion/qemu-netup.bash share/bash-completion/completions/qemu-netup
	for file in README.md SECURITY.md CHANGELOG.md LICENSE docs/*.md; do
		put 0644 "$file" "share/doc/vmnet/${file##*/}"
	done
	put 0644 docs/grafana/vmnet.json share/doc/vmnet/grafana/vmnet.json
	for example in docs/examples/*; do
		put 0644 "$example" "share/doc/vmnet/examples/${example##*/}"
	done
}

# The profiles of AppArmor go where it looks, if the machine has it. Packages take them from there.
profiles() {
	[ -d "$DESTDIR$apparmor" ] || return 0
	for profile in docs/apparmor/*; do
		file=$apparmor/${profile##*/}
		sed "s|@PREFIX@|$prefix|" "$profile" >"$DESTDIR$file"
		chmod 0644 "$DESTDIR$file"
		echo "$file" >>"$new"
		[ -n "$DESTDIR" ] || ! aa-enabled -q 2>/dev/null || apparmor_parser -r -W "$file" || true
	done
}

# units installs systemd's units, and enables none; the group, the directories and the kernel
# modules that the next boot makes and loads.
units() {
	for unit in docs/systemd/*.service; do
		sed "s|@PREFIX@|$prefix|" "$unit" | made "lib/systemd/system/${unit##*/}"
	done
	for file in docs/systemd/*.d/*; do
		put 0644 "$file" "lib/${file#docs/systemd/}"
	done
}

install_all() {
	built
	check
	new=$(mktemp)
	trap record EXIT
	place "$list"
	put 0755 "$BIN/vmnet" bin/vmnet
	put 0755 "$BIN/vmnet-hook" bin/vmnet-hook # not deeper: AppArmor lets libvirt execute only programs directly in /usr/bin
	put 0755 "$BIN/vmnet-cni" lib/cni/vmnet-cni # where Podman and Debian have plugins
	prefix=$(printf %s "$PREFIX" | sed 's/[&|\\]/\\&/g')
	documents
	units
	profiles
	netup
	if [ -e "$to/$list" ]; then # from another version
		grep -vxF -f "$new" "$to/$list" | remove
	fi
	tell
}

# record writes the list. If a step failed, it adds the old list, so that uninstall finds all files.
record() {
	status=$?
	[ $status = 0 ] || [ ! -e "$to/$list" ] || cat "$to/$list" >>"$new"
	install -m 0644 "$new" "$to/$list"
	rm -f "$new"
	exit $status
}

tell() {
	echo "vmnet is installed in $to. vmnet doctor checks it; see vmnet(8) and qemu-netup(8)."
	echo "For NICs that libvirt guests declare: vmnet hook install, see vmnet-hook(8)."
	echo "For NICs that they get while they run: systemctl enable --now vmnet-watch, see vmnet-watch(8)."
	echo "For pods of containers: vmnet-cni is in $PREFIX/lib/cni, see vmnet-cni(8)."
	echo "For a switch in userspace at each boot: /etc/vmnet/switch/NAME.env and systemctl enable --now vmnet-switch@NAME, see vmnet-switch(8)."
	[ "$PRIVILEGE" = none ] || return 0
	cat <<-END
		qemu-netup has no privilege yet: only root can use it. To let other users have what
		/etc/vmnet/policy.yaml and /etc/qemu/bridge.conf allow them, run one of these as root:
		  setcap $caps $PREFIX/bin/qemu-netup
		  chmod u+s $PREFIX/bin/qemu-netup
	END
}

uninstall() {
	[ -e "$to/$list" ] || { echo "vmnet is not installed in $to"; return; }
	remove <"$to/$list"
	for dir in $ours; do
		[ ! -d "$to/$dir" ] || rmdir --ignore-fail-on-non-empty "$to/$dir"
	done
}

case $PREFIX in /*) ;; *) die "PREFIX=$PREFIX: want an absolute path" ;; esac
case $1 in
install) install_all ;;
uninstall) uninstall ;;
esac
