// Package mangen writes the man pages: those of vmnet's commands from the commands, the others from
// Markdown. No installed program imports it, since a Markdown parser costs a millisecond at each
// start.
package mangen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"

	"vmnet/internal/cli/version"
)

// Write writes a page into dir for each docs/NAME.SECTION.md, and for each command of root's tree
// that is not hidden and has no such file.
func Write(root *cobra.Command, docs, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	sources, err := filepath.Glob(filepath.Join(docs, "*.md"))
	if err != nil {
		return err
	}
	for _, file := range sources {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(filepath.Base(file), ".md")
		page, err := Markdown(name, text)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), page, 0o644); err != nil {
			return err
		}
	}
	return tree(root, docs, dir)
}

func tree(cmd *cobra.Command, docs, dir string) error {
	name := pageName(cmd) + "." + section
	if _, err := os.Stat(filepath.Join(docs, name+".md")); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(filepath.Join(dir, name), Command(cmd), 0o644); err != nil {
			return err
		}
	}
	for _, sub := range cmd.Commands() {
		if !sub.IsAvailableCommand() {
			continue
		}
		if err := tree(sub, docs, dir); err != nil {
			return err
		}
	}
	return nil
}

// titleLine is the line from which go-md2man makes .TH: "% NAME SECTION" and nothing more.
var titleLine = regexp.MustCompile(`^% *"?([A-Za-z0-9._-]+)"?[ (]+"?([1-9])[)"]?.*\n`)

// Markdown returns the page NAME.SECTION for text in go-md2man's Markdown. It replaces the title
// line, which may be missing, so that all pages have the same form.
func Markdown(name string, text []byte) ([]byte, error) {
	title, sect, ok := cutLast(name, ".")
	if !ok {
		return nil, fmt.Errorf("page %q: want NAME.SECTION", name)
	}
	if m := titleLine.FindSubmatch(text); m != nil {
		if !strings.EqualFold(string(m[1]), title) || string(m[2]) != sect {
			return nil, fmt.Errorf("its title is %s(%s), want %s(%s)", m[1], m[2], title, sect)
		}
		text = text[len(m[0]):]
	}
	head := fmt.Sprintf("%% %q %q %q %q %q\n\n", strings.ToUpper(title), sect, date(), source, manual(sect))
	return md2man.Render(append([]byte(head), text...)), nil
}

// source is the product in a page's footer.
const source = "vmnet " + version.Number

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i > 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func manual(section string) string {
	if section == "5" {
		return "File Formats Manual"
	}
	return "System Manager's Manual"
}

// date returns the date of SOURCE_DATE_EPOCH, for reproducible builds, or today.
func date() string {
	at := time.Now()
	if s, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		at = time.Unix(s, 0)
	}
	return at.UTC().Format("2006-01-02")
}
