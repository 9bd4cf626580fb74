package main

import (
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func TestFormOf(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"qemu-netup", "nothing"},
		{"qemu-netup --help", "help"},
		{"qemu-netup --version", "version"},
		{"qemu-netup --use-vnet --br=br0 --fd=5", "bridgeHelper"},
		{"/usr/lib/qemu/qemu-bridge-helper --br=br0", "bridgeHelper"},
		{"qemu-netup --profile lab --use-vnet --fd=5 --br=br0", "bridgeHelper"},
		{"qemu-netup --attach --fd=3", "serve"},
		{"/etc/qemu-ifup tap0", "ifUp"},
		{"qemu-ifdown tap0", "ifDown"},
		{"qemu-netup tap0", "launch"},
		{"qemu-netup --bridge br0 --help", "help"},
		{"qemu-netup --bridge br0 -h -- vmm", "help"},
		{"qemu-netup --bridge br0 -- vmm --help", "launch"},
		{"qemu-netup ifup tap0", "ifUp"},
		{"qemu-netup ifdown tap0", "ifDown"},
		{"qemu-netup --bridge br0 -- qemu-system-x86_64", "launch"},
		{"qemu-netup --bridge br0 -- vmm --fd=3 --br=x --attach", "launch"},
		{"qemu-netup --bridge br0", "launch"},
	} {
		f, _ := formOf(strings.Fields(c.line))
		name := runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name()
		if !strings.HasSuffix(name, "."+c.want) {
			t.Errorf("%s: %s, want %s", c.line, name, c.want)
		}
	}
}
