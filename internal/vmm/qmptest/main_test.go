package qmptest

import (
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) {
	Main()
	leaktest.Main(m)
}
