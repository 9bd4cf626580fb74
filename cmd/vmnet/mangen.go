//go:build mangen

package main

import (
	"fmt"
	"os"

	"vmnet/internal/cli/mangen"
)

// With the build tag mangen this program writes the man pages instead (make man). So the generator
// sees the commands without being shipped with them.
func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: go run -tags mangen ./cmd/vmnet docs/man DIR")
		os.Exit(2)
	}
	a := &app{out: os.Stdout, err: os.Stderr}
	root := a.root()
	a.shells(root)
	if err := mangen.Write(root, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "mangen:", err)
		os.Exit(1)
	}
}
