package testvm_test

import (
	"context"
	"fmt"
	"log"

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
