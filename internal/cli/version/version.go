// Package version has the version of vmnet that a program belongs to.
package version

import (
	_ "embed"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Number is the version of these sources (semver.org). This is the only place: the programs, the
// man pages and make release take it from here.
const Number = "0.2.0"

// archived is a commit and its time, as git archive writes them (export-subst of gitattributes(5)).
//
//go:embed commit.txt
var archived string

// Info is what a build records about itself.
type Info struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`   // its first 12 digits; empty if unknown
	Modified bool   `json:"modified,omitempty"` // the sources differ from the commit
	Go       string `json:"go"`
	Platform string `json:"platform"` // GOOS/GOARCH
}

// Get returns what this program was built from. The commit is known if it was built in a git
// checkout or from the sources of a release.
func Get() Info {
	var settings []debug.BuildSetting
	if build, ok := debug.ReadBuildInfo(); ok {
		settings = build.Settings
	}
	return of(archived, settings)
}

func of(archived string, settings []debug.BuildSetting) Info {
	info := Info{Version: Number, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if !strings.HasPrefix(archived, "$") { // otherwise the sources are not an archive
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
