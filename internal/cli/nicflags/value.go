// Package nicflags reads from a command line what NIC a guest should get: the flags that
// vmnet attach and qemu-netup have in common.
package nicflags

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
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

// Number adds a flag that takes a whole number, whose bounds are checked with the rest; *p is the default.
func Number(fs *pflag.FlagSet, p *int, name, what, usage string) {
	def := ""
	if *p != 0 {
		def = strconv.Itoa(*p)
	}
	fs.Var(Value(what, def, func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil {
			return errors.New("want a whole number")
		}
		*p = n
		return nil
	}), name, usage)
}

// MTU adds --mtu, in bytes. 0, which would mean that none was asked for, is refused.
func MTU(fs *pflag.FlagSet, p *int, usage string) {
	fs.Var(Value("BYTES", "", func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n == 0 {
			return errors.New("want a whole number, 68 to 65535")
		}
		*p = n
		return nil
	}), "mtu", usage)
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
