// Package goqemu makes a monitor connection of package qmp serve as the Monitor of
// github.com/digitalocean/go-qemu. Its generated commands and types (package raw), and whatever
// else takes a Monitor, then work over QEMU's socket or through a [qmp.Relay], such as libvirt.
//
// They gain commands that end with a context, files passed along with a command, replies longer
// than 64 KiB, errors with their class ([qmp.Error]), and events that hold up no command.
//
// The types of go-qemu are generated from the QAPI schema of QEMU 2.11; docs/libraries.md says
// which of them are right for newer versions.
//
// go-qemu imports go-libvirt. A program that must not link them must not import this package.
package goqemu
