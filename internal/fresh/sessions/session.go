package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// session is a block of a Markdown file that begins with "```console".
type session struct {
	heading string // above it
	prompt  string // of its first line: # or $
	number  int    // of its first line in the file
	lines   []line

	patience time.Duration // for the output of a program in the background
}

// line is a line to type, and the output printed below it.
type line struct {
	number  int
	command string
	want    []string
}

// patience is the time limit of the sessions that parse returns.
const patience = 20 * time.Second

// parse returns the sessions of a Markdown file.
func parse(text string) ([]session, error) {
	var all []session
	var s *session
	heading := ""
	for i, l := range strings.Split(text, "\n") {
		prompt, command, isCommand := strings.Cut(l, " ")
		isCommand = isCommand && (prompt == "#" || prompt == "$")
		switch {
		case s == nil && l == "```console":
			s = &session{heading: heading, number: i + 2, patience: patience}
		case s == nil && strings.HasPrefix(l, "#"):
			heading = strings.TrimLeft(l, "# ")
		case s == nil:
		case l == "```":
			if len(s.lines) > 0 {
				all = append(all, *s)
			}
			s = nil
		case isCommand && len(s.lines) == 0:
			s.prompt = prompt
			fallthrough
		case isCommand && prompt == s.prompt:
			s.lines = append(s.lines, line{number: i + 1, command: command})
		case isCommand || len(s.lines) == 0:
			return nil, fmt.Errorf("line %d: not allowed in a session with the prompts %q: %s", i+1, s.prompt, l)
		default:
			last := &s.lines[len(s.lines)-1]
			last.want = append(last.want, l)
		}
	}
	if s != nil {
		return nil, fmt.Errorf("line %d: the session has no end", s.number)
	}
	return all, nil
}

// varies are the texts that differ between runs, and their replacements.
var varies = []struct {
	what *regexp.Regexp
	as   string
}{
	{regexp.MustCompile(`\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b`), "MAC"},
	{regexp.MustCompile(`\b[0-9.]+(ns|µs|ms|s)\b`), "TIME"},
	{regexp.MustCompile(`\b[0-9]+ s ago\b`), "TIME ago"},
	{regexp.MustCompile(`\bvhost (on|off)\b`), "vhost ON?"},
	{regexp.MustCompile(`  (on|off)  `), "  ON?  "}, // in the column VHOST
	{regexp.MustCompile(`  +`), "  "},
}

// beside matches what others say between the lines: a shell of programs in the background, a guest
// in the background of its sockets, vmnet of a machine without vhost-net, virsh of one without
// polkit.
var beside = regexp.MustCompile(
	`^(\[[0-9]+\][-+ ]|[^ ]+ runs with pid |(monitor|agent) +/|vmnet: note: (vhost-net is not used|network )|Authorization not available)`)

// normal returns the printed lines in a form that is equal in all runs.
func normal(lines []string) string {
	var kept []string
	for _, l := range lines {
		l = strings.TrimRight(l, " ")
		if l == "" || beside.MatchString(l) {
			continue
		}
		for _, v := range varies {
			l = v.what.ReplaceAllString(l, v.as)
		}
		kept = append(kept, l)
	}
	return strings.Join(kept, "\n")
}
