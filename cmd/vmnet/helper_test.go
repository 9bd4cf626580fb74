package main

import (
	"strings"
	"testing"
)

func TestCureOfEPERM(t *testing.T) {
	for _, c := range []struct {
		uid       int
		namespace bool
		want      string
	}{
		{0, true, "use --bridge or --switch here"},
		{0, false, "CAP_MKNOD"},
		{1000, false, "run vmnet as root"},
		{1000, true, "run vmnet as root"},
	} {
		got := cureOfEPERM(c.uid, c.namespace)
		if !strings.Contains(got, c.want) || c.uid == 0 && strings.Contains(got, "as root") {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
