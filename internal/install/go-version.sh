#!/bin/sh
# Says what is wrong with the Go at $1, and how to get another one; for the Makefile. Says nothing if it is what go.mod
# asks for. A Go of 1.21 or later may fetch that by itself (GOTOOLCHAIN).
need=$(awk '$1 == "go" { print $2 }' go.mod)
usual=/usr/local/go/bin

# version prints that of the program $1, in this module.
version() { "$1" env GOVERSION 2>/dev/null | sed 's/^go//'; }

# serves reports whether version $1 does.
serves() {
	case $1 in devel*) return 0 ;; esac
	[ "$(printf '%s\n' "$need" "$1" | sort -V | head -n 1)" = "$need" ]
}

if path=$(command -v "$1"); then
	found=$(version "$path")
	! serves "${found:-0}" || exit 0
	what="$path is ${found:-broken: $("$path" env GOVERSION 2>&1 | head -n 1)}"
else
	what="there is no program $1 in PATH"
fi
cure="get one as https://go.dev/doc/install says, and have it in PATH"
if [ -x $usual/go ] && serves "$(version $usual/go)"; then cure="put $usual, where there is one, first in PATH"; fi
echo "This needs Go $need or later, and $what: $cure"
