package step

// stageError is a failure of a stage. Its text is that of the cause alone: the failed step is named
// already.
type stageError struct{ stage, cause error }

func (e *stageError) Error() string   { return e.cause.Error() }
func (e *stageError) Unwrap() []error { return []error{e.stage, e.cause} }

// WithStage returns err so that errors.Is(err, stage) holds as well; nil stays nil, and a nil stage
// adds nothing.
func WithStage(stage, err error) error {
	if err == nil || stage == nil {
		return err
	}
	return &stageError{stage, err}
}

// InStage sets the stage of those steps that have none, and returns them.
func InStage(stage error, steps ...Step) []Step {
	for i := range steps {
		if steps[i].Stage == nil {
			steps[i].Stage = stage
		}
	}
	return steps
}
