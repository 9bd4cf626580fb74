#!/bin/sh
# docs/private-shell.sh with its own libvirtd.
exec sh "$(dirname "$0")/private-shell.sh" --libvirt "$@"
