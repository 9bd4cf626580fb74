// Hello prints a text that the linker sets.
package main

import "os"

var text = "nothing"

func main() { _, _ = os.Stdout.WriteString(text) }
