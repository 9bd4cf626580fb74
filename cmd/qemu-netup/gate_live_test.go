package main

import (
	"strings"
	"testing"

	"vmnet/internal/nstest"
	"vmnet/internal/rtnl"
)

func TestLiveAnAltnameGetsRoundNoRule(t *testing.T) {
	i := install(t)
	i.config("bridge.conf", "allow all\ndeny secret0\n")
	i.config("policy.yaml", "rules: [{users: ['*'], bridges: ['*'], lowers: [open0]}]\n")
	ns := nstest.New(t)
	bridges(t, ns, "secret0")
	c, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	br, err := c.Link("secret0")
	if err == nil {
		err = c.AddAltName(br.Index, "sidedoor")
	}
	if err == nil {
		err = c.AddAltName(br.Index, "open0")
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = ns.Do(func() error {
		for _, args := range [][]string{
			{"--vm", "P3", "--bridge", "sidedoor", "--", "/bin/true"},
			{"--vm", "P3", "--bridge", "secret0", "--", "/bin/true"},
			{"--vm", "P3", "--macvtap", "open0", "--", "/bin/true"},
		} {
			out, err := i.as(nobody, args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "secret0") {
				t.Errorf("%q: %v: %s", args, err, out)
			}
		}
		return nil
	})
}
