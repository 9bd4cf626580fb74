package fastpath

// The programs that go generate needs are those of package bpfguard.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -cflags "-O2 -Wall -Wextra -Werror -mcpu=v2 $BPF_CFLAGS" -output-stem programs -type key -type address -type counter fastpath fastpath.c
