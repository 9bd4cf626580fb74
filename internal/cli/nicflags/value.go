// Package nicflags has the flags of a NIC that vmnet attach and qemu-netup have in common.
package nicflags

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// Value returns a flag value whose text take checks while the command line is parsed.
func Value(kind, def string, take func(string) error) pflag.Value {
	return &value{kind: kind, text: def, take: take}
}

// Values is Value for a flag of which each use adds a value.
func Values(kind string, take func(string) error) pflag.Value {
	return &value{kind: kind, take: take, repeatable: true}
}

// Repeatable reports whether each use of a flag adds a value, instead of replacing the last one.
func Repeatable(f *pflag.Flag) bool {
	if v, ok := f.Value.(*value); ok {
		return v.repeatable
	}
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

type value struct {
	kind, text string
	take       func(string) error
	repeatable bool
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

// Number adds a flag that takes a whole number. The caller checks its bounds later; *p is the
// default.
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

// Positive returns the number of a text, which is at least 1.
func Positive(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, errors.New("want a number of at least 1")
	}
	return n, nil
}

// MTU adds --mtu, in bytes. It refuses 0, which means "not given" in *p.
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

// Choice adds a flag that takes one of words; *p is the default.
func Choice(fs *pflag.FlagSet, p *string, name, short, usage string, words ...string) {
	fs.VarP(Value(strings.Join(words, "|"), *p, func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("want %s", strings.Join(words, " or "))
		}
		*p = s
		return nil
	}), name, short, usage)
}
