package procfd_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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
			t.Errorf("%.10q of %d bytes was accepted", text, len(text))
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

func TestLabelEnds(t *testing.T) {
	f, err := procfd.NewLabel("vmnet vm=P2")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	own := procfd.File{PID: os.Getpid(), FD: int(f.Fd())}
	if own.LabelEnded() {
		t.Error("a new label has ended")
	}
	if err := own.EndLabel(); err != nil || !own.LabelEnded() {
		t.Errorf("%v, ended %v", err, own.LabelEnded())
	}
	if err := own.EndLabel(); err == nil {
		t.Error("a label that is not empty was written to")
	}
}

// TestEndLabelLeavesOthersAlone: a process may have put another file there, even under a label's
// name.
func TestEndLabelLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	regular, err := os.Create(filepath.Join(dir, "memfd:x"))
	if err != nil {
		t.Fatal(err)
	}
	defer regular.Close()
	if err := os.Remove(regular.Name()); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, f := range []*os.File{regular, r, w} {
		if err := (procfd.File{PID: os.Getpid(), FD: int(f.Fd())}).EndLabel(); err == nil {
			t.Errorf("%s was taken for a label", f.Name())
		}
	}
	if st, err := regular.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("%v, %v", st, err)
	}
	if err := (procfd.File{PID: os.Getpid(), FD: 1 << 20}).EndLabel(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is closed: %v", err)
	}
}
