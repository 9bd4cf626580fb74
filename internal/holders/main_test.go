package holders

import (
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.MainInUserNS(m) }
