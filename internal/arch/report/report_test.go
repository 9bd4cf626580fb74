package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/arch"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(tracedEnv); dir != "" {
		if err := traced(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	leaktest.Main(m)
}

// TestLiveFilesToOpen runs each verb, and counts the files of its rooms with code that ran.
func TestLiveFilesToOpen(t *testing.T) {
	nstest.RequireRoot(t)
	_, err := exec.LookPath("qemu-system-x86_64")
	nstest.Require(t, "qemu", err == nil, "apt-get install qemu-system-x86")
	t.Chdir("../../..")
	var rooms []string
	for _, v := range arch.Verbs {
		for _, room := range v.Rooms {
			rooms = append(rooms, "./"+room+"/...")
		}
	}
	slices.Sort(rooms)
	var report strings.Builder
	if err := trace(&report, true, slices.Compact(rooms)...); err != nil {
		t.Errorf("%v\n%s", err, report.String())
	}
}
