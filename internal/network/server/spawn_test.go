package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestSpawnErrors(t *testing.T) {
	for _, tc := range []struct {
		argv []string
		want string
	}{
		{[]string{"/nonexistent"}, "start /nonexistent: "},
		{[]string{"sh", "-c", "exit 0"}, "it has ended: "},
		{[]string{"sh", "-c", "echo 'vmnet: no bridge' >&2; exit 3"}, "exit status 3: no bridge"},
	} {
		if err := Spawn(t.Context(), tc.argv); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %s", tc.argv, err, tc.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := Spawn(ctx, []string{"sleep", "1000"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that is never ready: %v", err)
	}
}
