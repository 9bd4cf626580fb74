package main

import (
	"os"

	"vmnet/testvm/guest"
)

func main() {
	if os.Getpid() == 1 {
		guest.Main()
	}
}
