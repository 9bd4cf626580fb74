package procfd_test

import (
	"os"
	"strings"
	"testing"

	"vmnet/internal/kernel/procfd"
)

func labels() (texts []string) {
	procfd.Of(os.Getpid(), func(f procfd.File) {
		if text, ok := procfd.LabelOf(f); ok {
			texts = append(texts, text)
		}
	})
	return texts
}

func TestLabelIsReadFromTheProcess(t *testing.T) {
	for _, text := range []string{"vmnet vm=P2 source=/run/a b%20", strings.Repeat("x", procfd.MaxLabel)} {
		f, err := procfd.NewLabel(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := labels(); len(got) != 1 || got[0] != text {
			t.Errorf("read %q, want %q", got, text)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if got := labels(); len(got) != 0 {
			t.Errorf("read %q after it was closed", got)
		}
	}
}

func TestLabelThatDoesNotFit(t *testing.T) {
	for _, text := range []string{strings.Repeat("x", procfd.MaxLabel+1), "a\x00b"} {
		if f, err := procfd.NewLabel(text); err == nil {
			_ = f.Close()
			t.Errorf("%.10q of %d bytes was taken", text, len(text))
		}
	}
}

func TestOtherFilesAreNoLabels(t *testing.T) {
	for _, target := range []string{"/dev/null", "socket:[1]", "/memfd:open", "/tmp/memfd:x (deleted)"} {
		if text, ok := procfd.LabelOf(procfd.File{Target: target}); ok {
			t.Errorf("%s: label %q", target, text)
		}
	}
}
