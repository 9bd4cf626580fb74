package testvm

import (
	"testing"
	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestLiveBoot(t *testing.T) {
	for _, m := range []string{"pc", "q35"} {
		t.Run(m, func(t *testing.T) {
			vm := StartT(t, Config{Machine: m, NICs: []NIC{{Netdev: "user,restrict=on"}}})
			t.Log(vm.Console())
			l, err := vm.Guest.Links(t.Context())
			t.Logf("%+v %v", l, err)
		})
	}
}
