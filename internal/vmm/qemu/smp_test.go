package qemu

import "testing"

func TestCPUs(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want int
	}{
		{nil, 1},
		{[]string{"-smp", "4"}, 4},
		{[]string{"--smp", "cpus=3,maxcpus=8"}, 3},
		{[]string{"-smp", "sockets=2,cores=3,threads=2"}, 12},
		{[]string{"-smp", "8,sockets=2,cores=3"}, 8},
		{[]string{"-smp", "2", "-smp", "5"}, 5},
		{[]string{"-smp", "nonsense"}, 1},
		{[]string{"-smp", "cores=99999999999999999999"}, 1},
		{[]string{"-smp", "sockets=4000,cores=4000,threads=4000"}, maxCPUs},
		{[]string{"-name", "-smp", "7"}, 1},
	} {
		if got := CPUs(append([]string{"qemu-system-x86_64"}, c.argv...)); got != c.want {
			t.Errorf("%q: %d CPUs, want %d", c.argv, got, c.want)
		}
	}
}
