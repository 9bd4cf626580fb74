#!/bin/sh
# docs/private-shell.sh with a libvirtd of its own.
exec sh "$(dirname "$0")/private-shell.sh" --libvirt "$@"
