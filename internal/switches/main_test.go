package switches

import (
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.MainInUserNS(m) }
