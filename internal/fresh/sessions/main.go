// Program sessions types the sessions of Markdown files into shells, line by line as a reader does,
// and compares the output with the printed one.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

func main() {
	prompt := flag.String("prompt", "#", "type the sessions with this `PROMPT`: # for root's, $ for a user's")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: sessions [-prompt #|$] FILE.md...")
		os.Exit(2)
	}
	var errs []error
	for _, file := range flag.Args() {
		errs = append(errs, run(os.Stdout, file, *prompt))
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, "sessions:", err)
		os.Exit(1)
	}
}

// run types every session of the file that has that prompt.
func run(out io.Writer, file, prompt string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	all, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	var errs []error
	typed := 0
	for _, s := range all {
		if s.prompt != prompt {
			continue
		}
		typed++
		fmt.Fprintf(out, "== %s:%d, %s\n", file, s.number, s.heading)
		if err := s.run(out); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
	}
	if typed == 0 {
		errs = append(errs, fmt.Errorf("%s has no session with the prompt %s", file, prompt))
	}
	return errors.Join(errs...)
}

// lineTime is how long a line may take: the longest ones build programs and boot guests.
const lineTime = 5 * time.Minute

// run types the session's lines into a new shell. It stops at the first line that fails or prints
// something else: later lines depend on it.
func (s session) run(out io.Writer) error {
	sh, err := startShell(out)
	if err != nil {
		return err
	}
	defer sh.stop()
	for i, l := range s.lines {
		err := sh.enter(l.command, lineTime)
		switch {
		case errors.Is(err, io.EOF) && i == len(s.lines)-1 && len(l.want) == 0:
			return nil
		case err != nil:
			return fmt.Errorf("line %d: %s: %w", l.number, l.command, err)
		case len(l.want) == 0:
			continue // its output is not printed
		}
		got := sh.answer()
		for end := time.Now().Add(s.patience); got != normal(l.want) && time.Now().Before(end); got = sh.answer() {
			sh.read(100 * time.Millisecond)
		}
		if got != normal(l.want) {
			return fmt.Errorf("line %d: %s: it prints\n%s\nand the file has\n%s",
				l.number, l.command, got, normal(l.want))
		}
	}
	return nil
}

// answer returns the last line's output in a form that can be compared.
func (s *shell) answer() string { return normal(strings.Split(s.said(), "\n")) }
