package qmp

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestArgs(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	for _, tc := range []struct {
		name           string
		nic            NIC
		queues, vhosts []int
		netdev, device string
	}{
		{
			"least",
			NIC{ID: "n"},
			[]int{3},
			nil,
			"tap,id=n-netdev,fds=3", "virtio-net-pci,id=n,netdev=n-netdev",
		},
		{
			"datagram socket",
			NIC{ID: "n", Backend: Dgram},
			[]int{3},
			nil,
			"dgram,id=n-netdev,local.str=3,local.type=fd", "virtio-net-pci,id=n,netdev=n-netdev",
		},
		{
			"socket of any QEMU",
			NIC{ID: "n", Backend: Socket},
			[]int{3},
			nil,
			"socket,id=n-netdev,fd=3", "virtio-net-pci,id=n,netdev=n-netdev",
		},
		{
			"all",
			NIC{
				ID: "vmnet-net0", MAC: mac, HostMTU: 1500, Bus: "port0", Addr: "1",
				Options: map[string]string{"rx_queue_size": "512", "mrg_rxbuf": "off"},
			},
			[]int{3, 4},
			[]int{5, 6},
			"tap,id=vmnet-net0-netdev,fds=3:4,vhostfds=5:6",
			"virtio-net-pci,id=vmnet-net0,netdev=vmnet-net0-netdev,mac=52:54:00:00:00:01,bus=port0,addr=1,mq=on,vectors=6,host_mtu=1500,mrg_rxbuf=off,rx_queue_size=512",
		},
		{
			"one queue with vhost",
			NIC{ID: "n", Netdev: "b"},
			[]int{10},
			[]int{11},
			"tap,id=b,fds=10,vhostfds=11", "virtio-net-pci,id=n,netdev=b",
		},
		{
			"mmio has no vectors",
			NIC{ID: "n", Model: "virtio-net-device"},
			[]int{3, 4},
			nil,
			"tap,id=n-netdev,fds=3:4", "virtio-net-device,id=n,netdev=n-netdev,mq=on",
		},
		{
			"ccw has no vectors",
			NIC{ID: "n", Model: "virtio-net-ccw"},
			[]int{3, 4},
			nil,
			"tap,id=n-netdev,fds=3:4", "virtio-net-ccw,id=n,netdev=n-netdev,mq=on",
		},
		{
			"own vectors and commas",
			NIC{ID: "n", Options: map[string]string{"vectors": "9", "romfile": "/a,b=c", "x-empty": ""}},
			[]int{3, 4},
			nil,
			"tap,id=n-netdev,fds=3:4", "virtio-net-pci,id=n,netdev=n-netdev,mq=on,vectors=9,romfile=/a,,b=c,x-empty=",
		},
		{
			"typed",
			NIC{
				ID: "n", Options: map[string]string{"mrg_rxbuf": "no", "rombar": "0x0"},
				typed: map[string]any{"mrg_rxbuf": false, "rombar": int64(0)},
			},
			[]int{3},
			nil,
			"tap,id=n-netdev,fds=3", "virtio-net-pci,id=n,netdev=n-netdev,mrg_rxbuf=off,rombar=0",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.nic.Args(tc.queues, tc.vhosts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"-netdev", tc.netdev, "-device", tc.device}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestArgsRefuses(t *testing.T) {
	for want, tc := range map[string]struct {
		nic            NIC
		queues, vhosts []int
	}{
		"has 0 queues":       {nic: NIC{ID: "n"}},
		"1 vhost fds":        {nic: NIC{ID: "n"}, queues: []int{3, 4}, vhosts: []int{5}},
		"-1 is not a file":   {nic: NIC{ID: "n"}, queues: []int{-1}},
		"device id":          {nic: NIC{ID: "a,b"}, queues: []int{3}},
		`model "a,id=b"`:     {nic: NIC{ID: "n", Model: "a,id=b"}, queues: []int{3}},
		`property "x=1,mac"`: {nic: NIC{ID: "n", Options: map[string]string{"x=1,mac": "2"}}, queues: []int{3}},
		"another setting":    {nic: NIC{ID: "n", Options: map[string]string{"mq": "on"}}, queues: []int{3}},
		"has one queue":      {nic: NIC{ID: "n", Model: "e1000"}, queues: []int{3, 4}},
	} {
		if _, err := tc.nic.Args(tc.queues, tc.vhosts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
