// Package version says which vmnet a program is of.
package version

import (
	_ "embed"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Number is the version of these sources (semver.org). It stands here alone: the programs, the man
// pages and make release take it from here.
const Number = "0.1.0"

// archived is a commit and its time, which git archive writes (export-subst of gitattributes(5)).
//
//go:embed commit.txt
var archived string

// Info is what a build knows about itself.
type Info struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`   // its first 12 digits; empty where it is not known
	Modified bool   `json:"modified,omitempty"` // the sources differ from the commit
	Go       string `json:"go"`
	Platform string `json:"platform"` // GOOS/GOARCH
}

// Get returns what this program was built of. The commit is known to a build in a git checkout and to
// one of a release's sources.
func Get() Info {
	var settings []debug.BuildSetting
	if build, ok := debug.ReadBuildInfo(); ok {
		settings = build.Settings
	}
	return of(archived, settings)
}

func of(archived string, settings []debug.BuildSetting) Info {
	info := Info{Version: Number, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if !strings.HasPrefix(archived, "$") { // else no archive
		info.Commit, _, _ = strings.Cut(strings.TrimSpace(archived), " ")
	}
	for _, s := range settings {
		switch s.Key {
		case "vcs.revision":
			info.Commit = s.Value
		case "vcs.modified":
			info.Modified = s.Value == "true"
		}
	}
	info.Commit = fmt.Sprintf("%.12s", info.Commit)
	return info
}

// Text returns the line that a program prints about itself.
func Text(program string) string { return Get().text(program) }

func (i Info) text(program string) string {
	commit := ""
	switch {
	case i.Commit != "" && i.Modified:
		commit = " (commit " + i.Commit + ", modified)"
	case i.Commit != "":
		commit = " (commit " + i.Commit + ")"
	}
	return fmt.Sprintf("%s %s%s %s %s", program, i.Version, commit, i.Go, i.Platform)
}
