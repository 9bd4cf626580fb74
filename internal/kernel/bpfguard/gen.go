package bpfguard

// The programs that go generate needs, besides Go: clang, llvm-strip and the kernel's headers.
// BPF_CFLAGS names the directory of asm/types.h, which depends on the machine that compiles.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -cflags "-O2 -Wall -Wextra -Werror -mcpu=v2 $BPF_CFLAGS" -output-stem guard guard guard.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -cflags "-O2 -Wall -Wextra -Werror -mcpu=v2 $BPF_CFLAGS" -output-stem inbound inbound inbound.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -cflags "-O2 -Wall -Wextra -Werror -mcpu=v2 $BPF_CFLAGS" -output-stem capture capture capture.c
