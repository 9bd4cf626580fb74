#!/bin/sh
# Prints why the Go at $1 does not satisfy go.mod, and how to get another one; for the Makefile.
# Prints nothing if it does. Go 1.21 and later can fetch a newer toolchain by itself (GOTOOLCHAIN).
need=$(awk '$1 == "go" { print $2 }' go.mod)
usual=/usr/local/go/bin

# version prints the Go version of the program $1 in this module.
version() { "$1" env GOVERSION 2>/dev/null | sed 's/^go//'; }

# serves reports whether version $1 is new enough.
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
cure="install one as https://go.dev/doc/install says, and put it in PATH"
if [ -x $usual/go ] && serves "$(version $usual/go)"; then cure="put $usual, which has one, first in PATH"; fi
echo "This needs Go $need or later, and $what: $cure"
