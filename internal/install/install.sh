#!/bin/sh
# Puts what was built in $BIN into $DESTDIR$PREFIX, or takes it out again; for the Makefile. It builds nothing, and needs no Go.
# A list of what was put there is kept beside it: uninstall removes that and nothing else.
set -eu
umask 022
PATH=$PATH:/usr/sbin:/sbin # setcap, for a root without them
to=$DESTDIR$PREFIX
ours="libexec/vmnet share/doc/vmnet/examples share/doc/vmnet" # folders, innermost first
list=share/doc/vmnet/files

die() { echo "install: $*" >&2; exit 2; }

# put MODE FROM TO copies a file; link TARGET TO makes a symbolic link.
put() { place "$3"; install -T -m "$1" "$2" "$to/$3"; }
link() { place "$2"; ln -sfn "$1" "$to/$2"; }
place() { mkdir -p "$to/$(dirname "$1")"; echo "$1" >>"$new"; }

# made TO, from standard input, is for what a program writes.
made() { place "$1"; cat >"$to/$1"; chmod 0644 "$to/$1"; }

# remove takes what the list on standard input names.
remove() {
	while IFS= read -r file; do
		case /$file/ in *//* | */../*) die "$to/$list names $file" ;; esac
		rm -f "$to/$file"
	done
}

# built makes sure that all is there, and was built to be put where it is put now.
built() {
	for file in vmnet vmnet-hook qemu-netup qemu-netup-full prefix man/vmnet.8; do
		[ -e "$BIN/$file" ] || die "nothing to install: $BIN/$file is missing. Run 'make build', as yourself, first"
	done
	[ "$(cat "$BIN/prefix")" = "$PREFIX" ] ||
		die "what is in $BIN was built for PREFIX=$(cat "$BIN/prefix"). Run 'make build PREFIX=$PREFIX' first"
}

check() {
	[ -z "$GROUP" ] || [ "$PRIVILEGE" = none ] || getent group "$GROUP" >/dev/null || die "there is no group $GROUP: groupadd --system $GROUP"
	case $PRIVILEGE in
	none) [ -z "$GROUP" ] || die "GROUP=$GROUP goes with PRIVILEGE=setuid or setcap" ;;
	setuid | setcap) [ "$(id -u)" = 0 ] || die "PRIVILEGE=$PRIVILEGE can only be given by root" ;;
	*) die "PRIVILEGE=$PRIVILEGE: want none, setuid or setcap" ;;
	esac
	[ "$PRIVILEGE" != setcap ] || command -v setcap >/dev/null || die "there is no setcap: apt install libcap2-bin"
}

# netup installs the helper last of all, and gives it its right once it is whole. What it becomes
# for most of its forms has none of its own.
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
		setcap cap_net_admin+ep "$to/bin/qemu-netup"
		;;
	esac
	for name in qemu-bridge-helper qemu-ifup qemu-ifdown; do
		link ../../bin/qemu-netup "libexec/vmnet/$name"
	done
}

documents() {
	for page in "$BIN"/man/*; do
		put 0644 "$page" "share/man/man${page##*.}/${page##*/}"
	done
	"$BIN/vmnet" completion bash | made share/bash-completion/completions/vmnet
	"$BIN/vmnet" completion zsh | made share/zsh/site-functions/_vmnet
	"$BIN/vmnet" completion fish | made share/fish/vendor_completions.d/vmnet.fish
	put 0644 docs/completion/qemu-netup.bash share/bash-completion/completions/qemu-netup
	for file in README.md SECURITY.md CHANGELOG.md LICENSE docs/libvirt.md docs/switch.md docs/launch.md docs/terms.md docs/libraries.md; do
		put 0644 "$file" "share/doc/vmnet/${file##*/}"
	done
	for example in docs/examples/*; do
		put 0644 "$example" "share/doc/vmnet/examples/${example##*/}"
	done
}

# units has the units of systemd, of which nothing is enabled.
units() {
	prefix=$(printf %s "$PREFIX" | sed 's/[&|\\]/\\&/g')
	for unit in docs/systemd/*; do
		sed "s|@PREFIX@|$prefix|" "$unit" | made "lib/systemd/system/${unit##*/}"
	done
}

install_all() {
	built
	check
	new=$(mktemp)
	trap record EXIT
	place "$list"
	put 0755 "$BIN/vmnet" bin/vmnet
	put 0755 "$BIN/vmnet-hook" bin/vmnet-hook # not deeper: AppArmor lets libvirt execute what is in /usr/bin
	documents
	units
	netup
	if [ -e "$to/$list" ]; then # of another version
		grep -vxF -f "$new" "$to/$list" | remove
	fi
	tell
}

# record writes the list, and where a step failed one that has the old files as well,
# so that uninstall finds all.
record() {
	status=$?
	[ $status = 0 ] || [ ! -e "$to/$list" ] || cat "$to/$list" >>"$new"
	install -m 0644 "$new" "$to/$list"
	rm -f "$new"
	exit $status
}

tell() {
	echo "vmnet is in $to; vmnet doctor checks it, vmnet(8) and qemu-netup(8) explain it."
	echo "For NICs that libvirt's guests declare: vmnet hook install, which vmnet-hook(8) explains."
	echo "For NICs that they are given live: systemctl enable --now vmnet-watch, which vmnet-watch(8) explains."
	echo "For a switch in userspace at each start: /etc/vmnet/switch/NAME.env and systemctl enable --now vmnet-switch@NAME, which vmnet-switch(8) explains."
	[ "$PRIVILEGE" = none ] || return 0
	cat <<-END
		qemu-netup has no right yet: only root can use it. To let other users have what
		/etc/vmnet/policy.yaml and /etc/qemu/bridge.conf allow them, do as root one of
		  setcap cap_net_admin+ep $PREFIX/bin/qemu-netup
		  chmod u+s $PREFIX/bin/qemu-netup
	END
}

uninstall() {
	[ -e "$to/$list" ] || { echo "nothing of vmnet is in $to"; return; }
	remove <"$to/$list"
	for folder in $ours; do
		[ ! -d "$to/$folder" ] || rmdir --ignore-fail-on-non-empty "$to/$folder"
	done
}

case $PREFIX in /*) ;; *) die "PREFIX=$PREFIX: want an absolute path" ;; esac
case $1 in
install) install_all ;;
uninstall) uninstall ;;
esac
