# bash completion for qemu-netup: its options, the values of some of them, and after -- the
# command to start.
_qemu_netup() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} i words
	for ((i = 1; i < COMP_CWORD; i++)); do
		if [[ ${COMP_WORDS[i]} == -- ]]; then
			declare -F _command_offset >/dev/null && _command_offset $((i + 1))
			return
		fi
	done
	case $before in
	--bridge | --br) words=$(vmnet bridge list -o json 2>/dev/null | grep -oP '"bridge": *"\K[^"]+') ;;
	--macvtap | --ipvtap) words=$(cd /sys/class/net 2>/dev/null && echo *) ;;
	--switch) words=$(vmnet switch list -o json 2>/dev/null | grep -oP '"name": *"\K[^"]+') ;;
	--mode) words="bridge vepa private passthru source l2 l3" ;;
	--flag) words="bridge private vepa" ;;
	--rx-filter) words="allmulti mirror none" ;;
	--vhost) words="auto on off" ;;
	--place) words="auto pci pcie mmio ccw usb" ;;
	--queues) words="auto 1 2 4 8" ;;
	--qmp) words="none auto" ;;
	--via) words="socket vhost-user" ;;
	*) words=$(qemu-netup --help 2>&1 | grep -oE -e '--[a-z][a-z-]*' | sort -u) ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o default -F _qemu_netup qemu-netup
