package step_test

import (
	"context"
	"errors"
	"fmt"

	"vmnet/step"
)

// The second step fails: the first one is undone, and the error names the step.
func ExampleRun() {
	say := func(text string) func(context.Context) error {
		return func(context.Context) error { fmt.Println(text); return nil }
	}
	full := func(context.Context) error { return errors.New("no space left on device") }
	err := step.Run(context.Background(), []step.Step{
		{Name: "directory", Text: "mkdir /run/p2", Do: say("make the directory"), Undo: say("remove the directory")},
		{Name: "file", Text: "write /run/p2/a", Do: full},
	}, nil)
	fmt.Println(err)
	// Output:
	// make the directory
	// remove the directory
	// file: no space left on device
}
