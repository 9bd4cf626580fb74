package step_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/step"
)

// recorder makes steps that record their runs. Those whose names are in fail return an error.
type recorder struct{ log []string }

func (r *recorder) step(name string, do, undo error) step.Step {
	return step.Step{
		Name: name,
		Do:   func(context.Context) error { r.log = append(r.log, name); return do },
		Undo: func(context.Context) error { r.log = append(r.log, "-"+name); return undo },
	}
}

func TestRunUndoesBackwardsAndJoinsErrors(t *testing.T) {
	do, undo := errors.New("do"), errors.New("undo")
	var r recorder
	steps := []step.Step{r.step("a", nil, nil), r.step("b", nil, undo), {Name: "bare", Do: func(context.Context) error {
		return nil
	}}, r.step("c", do, nil), r.step("d", nil, nil)}
	err := step.Run(t.Context(), steps, nil)
	if !errors.Is(err, do) || !errors.Is(err, undo) {
		t.Errorf("error %v does not hold both causes", err)
	}
	if want := "c: do\nundo b: undo"; err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "-c", "-b", "-a"}, r.log); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestRunStopsWhenCancelledAndStillUndoes(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupted")
	var r recorder
	steps := []step.Step{r.step("a", nil, nil), r.step("b", nil, nil)}
	steps[0].Do = func(context.Context) error { cancel(cause); return nil }
	steps[0].Undo = func(ctx context.Context) error { r.log = append(r.log, "-a"); return ctx.Err() }
	err := step.Run(ctx, steps, nil)
	if !errors.Is(err, cause) || strings.Contains(err.Error(), "undo") {
		t.Errorf("got %v, want the cause alone", err)
	}
	if diff := cmp.Diff([]string{"-b", "-a"}, r.log); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestAroundSeesEveryStepAndMayFailIt(t *testing.T) {
	var r recorder
	fault := errors.New("fault")
	around := func(ctx context.Context, s step.Step, do func(context.Context) error) error {
		if err := do(ctx); err != nil || s.Name != "b" {
			return err
		}
		return fault
	}
	err := step.Run(t.Context(), []step.Step{r.step("a", nil, nil), r.step("b", nil, nil)}, around)
	if !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"a", "b", "-b", "-a"}, r.log); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestErrorsHaveTheirStage(t *testing.T) {
	stage, other, cause := errors.New("stage"), errors.New("other"), errors.New("cause")
	var r recorder
	own := r.step("own", cause, nil)
	own.Stage = other
	for _, test := range []struct {
		step step.Step
		want error
	}{{r.step("a", cause, nil), stage}, {own, other}} {
		err := step.Run(t.Context(), step.InStage(stage, test.step), nil)
		if !errors.Is(err, test.want) || !errors.Is(err, cause) || err.Error() != test.step.Name+": cause" {
			t.Errorf("%s: %v, which should match %v", test.step.Name, err, test.want)
		}
	}
	if err := step.Run(t.Context(), step.InStage(stage, r.step("b", nil, nil)), nil); err != nil {
		t.Errorf("no error became %v", err)
	}
}
