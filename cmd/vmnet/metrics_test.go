package main

import (
	"strings"
	"testing"

	"vmnet/internal/metrics"
)

// TestMetricsOfAFailure: a collection that fails at its beginning says so.
func TestMetricsOfAFailure(t *testing.T) {
	a := &app{netns: "no-such-namespace"}
	all, err := a.metricsNow(t.Context())
	var text strings.Builder
	werr := metrics.Write(&text, all)
	if err == nil || werr != nil || !strings.Contains(text.String(), "vmnet_collection_success 0\n") {
		t.Errorf("%v, %v, metrics:\n%s", err, werr, &text)
	}
}
