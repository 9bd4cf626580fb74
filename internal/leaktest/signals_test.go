package leaktest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// TestDefaultSignals looks at a child of this test, started by nohup: it ignores nothing.
func TestDefaultSignals(t *testing.T) {
	const inner = "VMNET_TEST_SIGNALS"
	if os.Getenv(inner) != "" {
		out, err := exec.Command("grep", "SigIgn", "/proc/self/status").Output()
		t.Logf("%s%v", out, err)
		return
	}
	cmd := exec.Command("nohup", "sh", "-c", `trap "" INT; exec "$0" -test.run=TestDefaultSignals -test.v`, os.Args[0])
	cmd.Env = append(os.Environ(), inner+"=1")
	out, err := cmd.CombinedOutput()
	_, ignored, found := strings.Cut(string(out), "SigIgn:")
	if err != nil || !found || !strings.HasPrefix(strings.TrimSpace(ignored), "000000000000") || strings.ContainsAny(strings.TrimSpace(ignored)[15:16], "1234567") {
		t.Errorf("%v\n%s", err, out)
	}
}
