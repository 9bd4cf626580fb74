package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by `go build -ldflags "-X main.version=v1.2.3"`.
var version string

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Tell which vmnet this is",
		Args:  noArgs(),
		RunE: a.verb(func(*cobra.Command, []string) error {
			return a.result(struct {
				Version string `json:"version"`
			}{versionText()}, "%s", versionText())
		}),
	}
	outputFlag(cmd)
	return cmd
}

// versionText tells version and commit, as far as the build knew them, and Go's.
func versionText() string {
	v, commit := version, ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" {
			v = info.Main.Version
		}
		commit = vcs(info.Settings)
	}
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	return fmt.Sprintf("vmnet %s%s %s %s/%s", v, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func vcs(settings []debug.BuildSetting) string {
	at := map[string]string{}
	for _, s := range settings {
		at[s.Key] = s.Value
	}
	if at["vcs.revision"] == "" {
		return ""
	}
	modified := ""
	if at["vcs.modified"] == "true" {
		modified = ", modified"
	}
	return fmt.Sprintf(" (commit %.12s%s)", at["vcs.revision"], modified)
}
