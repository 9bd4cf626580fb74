// Package nicflags reads from a command line what NIC a guest should get: the flags that
// vmnet attach and qemu-netup have in common.
package nicflags

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Value is a flag whose text is checked while the command line is read.
func Value(kind, def string, take func(string) error) pflag.Value { return &value{kind, def, take} }

type value struct {
	kind, text string
	take       func(string) error
}

func (v *value) Type() string   { return v.kind }
func (v *value) String() string { return v.text }

func (v *value) Set(s string) error {
	if err := v.take(s); err != nil {
		return err
	}
	v.text = s
	return nil
}

// Choice is a flag that takes one of a few words; *p is the default.
func Choice(fs *pflag.FlagSet, p *string, name, short, usage string, words ...string) {
	fs.VarP(Value(strings.Join(words, "|"), *p, func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("want %s", strings.Join(words, " or "))
		}
		*p = s
		return nil
	}), name, short, usage)
}
