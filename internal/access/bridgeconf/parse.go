package bridgeconf

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// spaces are the characters that g_ascii_isspace of GLib accepts, which QEMU's helper has used
// since 4.2. A vertical tab is not one of them.
const spaces = " \t\n\f\r"

// maxName is the longest name of an interface in bytes (IFNAMSIZ is 16 with the final NUL).
const maxName = 15

// parse adds the rules of a file's content. After an error the rules before it are kept. This
// matters in included files, whose errors are ignored.
func (r *reader) parse(path string, data []byte) error {
	for n := 1; len(data) > 0; n++ {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte("\n"))
		if len(line) > maxLine {
			return fmt.Errorf("%w: %s:%d: the line has %d bytes, more than %d (cut it)",
				errRefused, path, n, len(line), maxLine)
		}
		if err := r.line(path, n, line); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) line(path string, n int, line []byte) error {
	line, _, _ = bytes.Cut(line, []byte{0}) // where a C string ends
	word, arg, err := split(string(line))
	switch {
	case err != nil:
		return fmt.Errorf("%s:%d: %w", path, n, err)
	case word == "":
		return nil
	case len(r.acl.Rules)+r.includes == maxRules:
		return fmt.Errorf("%w: %s:%d: more than %d rules and includes in all (take some out)",
			errRefused, path, n, maxRules)
	case word == "include":
		r.includes++
		return r.include(path, n, arg)
	}
	r.acl.Rules = append(r.acl.Rules, Rule{File: path, Line: n, Deny: word == "deny", Bridge: arg})
	return nil
}

// include reads an included file. QEMU continues after any error; here a refused file ends the
// reading. A relative path is refused: QEMU resolves it in the working directory of the caller,
// whom the file is meant to restrict.
func (r *reader) include(path string, n int, file string) error {
	if file != "" && !filepath.IsAbs(file) {
		return fmt.Errorf("%w: %s:%d: include %s: the path is relative (write it from / on)",
			errRefused, path, n, quote(file))
	}
	err := r.read(file)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s:%d: include: %w", path, n, err)
	if errors.Is(err, errRefused) {
		return err
	}
	r.acl.Skipped = append(r.acl.Skipped, err)
	return nil
}

// split takes a line apart; word is empty if the line has no content. The separator is the first
// space of the line, even a trailing one behind a tab. Only without a space is it the first tab. An
// argument may be empty or contain white space.
func split(line string) (word, arg string, err error) {
	line = strings.TrimLeft(line, spaces)
	if line == "" || line[0] == '#' {
		return "", "", nil
	}
	// QEMU's line still has its newline, which is not a separator.
	word, arg, found := strings.Cut(line, " ")
	if !found {
		word, arg, found = strings.Cut(line, "\t")
	}
	arg = strings.Trim(arg, spaces)
	switch {
	case !found:
		return "", "", fmt.Errorf("%s has no argument (allow BRIDGE, deny BRIDGE, include FILE)", quote(line))
	case word != "allow" && word != "deny" && word != "include":
		return "", "", fmt.Errorf("unknown word %s (want allow, deny or include, and one space)", quote(word))
	case word != "include" && len(arg) > maxName:
		return "", "", fmt.Errorf("name %s has %d bytes (a bridge's has at most %d)", quote(arg), len(arg), maxName)
	}
	return word, arg, nil
}

// quote quotes text from a file, shortened to what fits into a line of output.
func quote(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%q...", s[:40])
	}
	return fmt.Sprintf("%q", s)
}
