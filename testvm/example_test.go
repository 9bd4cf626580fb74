package testvm_test

import (
	"context"
	"fmt"
	"log"
	"slices"

	"vmnet/testvm"
)

// A tiny guest with a monitor, for as long as the context lasts.
func ExampleStart() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	vm, err := testvm.Start(ctx, testvm.Config{Name: "P2"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(vm.QMP)
}

// The command line of a guest, without starting it.
func ExampleCommandLine() {
	argv, err := testvm.CommandLine(testvm.Config{Name: "P2", CPUs: 2, Accel: "tcg"}, testvm.Files{Kernel: "vmlinuz"})
	if err != nil {
		log.Fatal(err)
	}
	i := slices.Index(argv, "-smp")
	fmt.Println(argv[i : i+4])
	// Output: [-smp 2 -kernel vmlinuz]
}
