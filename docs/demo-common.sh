# The common part of the demos, which source it.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/bin:$PATH" XDG_RUNTIME_DIR
XDG_RUNTIME_DIR=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$XDG_RUNTIME_DIR"' EXIT
start=$(date +%s)

title() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@"; }

# guest NAME OPTION... boots a guest that runs in the background.
guest() {
	printf '\033[36m$ testvm run --name %s &\033[0m\n' "$*"
	testvm run --name "$@" >"$XDG_RUNTIME_DIR/$1.log" 2>&1 &
	for _ in $(seq 300); do
		grep -q 'runs with pid' "$XDG_RUNTIME_DIR/$1.log" && break
		kill -0 $! 2>/dev/null || { cat "$XDG_RUNTIME_DIR/$1.log"; exit 1; }
		sleep 0.1
	done
	cat "$XDG_RUNTIME_DIR/$1.log"
}
