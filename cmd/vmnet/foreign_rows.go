package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/console"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// foreignRows is reconcile --foreign-rows.
type foreignRows struct {
	wanted, yes, dry, json bool
	ovsdbs                 []string
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64

// run removes the ports of Open vSwitch that others have left, once a person has agreed: only a
// person knows whether a device of that name comes back.
func (o *foreignRows) run(cmd *cobra.Command, a *app, m *tapmgr.Manager) error {
	if len(o.ovsdbs) > 0 {
		m.UseDatabases(o.ovsdbs...)
	}
	rows, err := m.ForeignRows(cmd.Context())
	if err != nil {
		return err
	}
	if !o.dry && len(rows) > 0 {
		if err := o.ask(cmd, rows); err != nil {
			return err
		}
		if rows, err = m.RemoveForeignRows(cmd.Context(), rows); err != nil && len(rows) == 0 {
			return err
		}
	}
	if o.json {
		return cmp.Or(a.printJSON(rows), err)
	}
	return cmp.Or(a.printActions(rows, o.dry), err)
}

// ask names the rows on stderr, and returns an error unless the answer is yes.
func (o *foreignRows) ask(cmd *cobra.Command, rows []nic.Action) error {
	if o.yes {
		return nil
	}
	const most = 20
	out := cmd.ErrOrStderr()
	for i, r := range rows {
		if i == most {
			fmt.Fprintf(out, "and %d more (--dry-run names all)\n", len(rows)-most)
			break
		}
		fmt.Fprintf(out, "%s: %s\n", console.Clean(r.Interface), console.Clean(r.Action))
	}
	fmt.Fprintf(out, "Remove %s from Open vSwitch? [y/N] ", count(len(rows), "port"))
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), maxAnswer)).ReadString('\n')
	if err != nil && line == "" {
		fmt.Fprintln(out)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was removed: nobody answered yes (--yes asks nobody)")
}
