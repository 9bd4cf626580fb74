package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"vmnet/internal/leaktest"
	"vmnet/internal/nsport"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestConfig: which attachment a configuration asks for, or what is wrong with it.
func TestConfig(t *testing.T) {
	args := skel.CmdArgs{
		ContainerID: strings.Repeat("c", 64), Netns: "/var/run/netns/cni-1a2b", IfName: "eth0",
		Args: "IgnoreUnknown=1;K8S_POD_NAME=web",
	}
	for _, row := range []struct{ keys, want string }{
		{`"bridge":"br0"`, "veth br0"},
		{`"bridge":"br0","vlan":20,"isolated":true,"mtu":1400`, "veth br0 vlan:20;isolated 1400"},
		{`"bridge":"br0","trunk":[{"first":2,"last":5}],"native":1`, "veth br0 trunk:2-5;native:1"},
		{
			`"network":"lab","runtimeConfig":{"ips":["10.0.0.7"],"mac":"02:00:00:01:02:03"}`,
			"veth lab 10.0.0.7/32 02:00:00:01:02:03",
		},
		{`"macvlan":"eth1","mode":"vepa"`, "macvlan eth1 vepa"},
		{`"ipvlan":"eth1","runtimeConfig":{"ips":["fd00::7/64"]}`, "ipvlan eth1 fd00::7/64"},
		{
			`"bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/24"},"runtimeConfig":{"ips":["10.0.0.7/24"]}`,
			"veth br0",
		},
		{`"bridge":"br0","ipam":{}`, "veth br0"},

		{`"brige":"br0"`, `error 6: network configuration: json: unknown field "brige"`},
		{`"bridge":1`, "error 6: network configuration: json: cannot unmarshal"},
		{`"bridge":"br0","ipam":{"subnet":"10.0.0.0/24"}`, "error 7: ipam: no type"},
		{`"bridge":"br0","ipam":{"type":"dhcp"}`, "error 7: ipam: dhcp needs the interface before"},
		{`"bridge":"br0","runtimeConfig":{"ips":["10.0.0.7"]}`, "error 7: runtimeConfig.ips"},
		{`"bridge":"br0","runtimeConfig":{"ports":[]}`, `error 6: network configuration: json: unknown field "ports"`},
		{`"bridge":"br0","runtimeConfig":{"mac":"x"}`, `error 7: MAC address "x"`},
		{`"bridge":"br0","macvlan":"eth0"`, "error 7: "},
		{`"bridge":"br0","mode":"vepa"`, "error 7: "},
		{`"bridge":"br0","vlan":5000`, "error 7: "},
		{`"mtu":1500`, "error 7: "},
	} {
		if got := specOf(row.keys, args); !strings.HasPrefix(got, row.want) {
			t.Errorf("%s: %q, want %q", row.keys, got, row.want)
		}
	}
	args.Args = "MAC=02:00:00:00:00:09"
	if got, want := specOf(`"bridge":"br0"`, args), "veth br0 02:00:00:00:00:09"; got != want {
		t.Errorf("%s: %q, want %q", args.Args, got, want)
	}
	args.Args = "K8S_POD_NAME=web"
	if got := specOf(`"bridge":"br0"`, args); !strings.HasPrefix(got, "error 4: CNI_ARGS: ") {
		t.Errorf("%s: %q", args.Args, got)
	}
	if _, err := parse([]byte(`{"name":"pods"} {}`)); err == nil {
		t.Error("two objects are accepted")
	}
}

// specOf describes the attachment, or the error.
func specOf(keys string, args skel.CmdArgs) string {
	n, err := parse([]byte(`{"cniVersion":"1.1.0","name":"pods","type":"vmnet-cni",` + keys + `}`))
	var s nsport.Spec
	if err == nil {
		s, err = n.spec(&args)
	}
	if err == nil {
		err = s.Validate()
	}
	if err != nil {
		var got *types.Error
		errors.As(coded(err), &got)
		return fmt.Sprintf("error %d: %s", got.Code, got.Msg)
	}
	kind := map[bool]string{true: "macvlan ", false: "veth "}[s.Macvlan != ""]
	if s.IPVlan != "" {
		kind = "ipvlan "
	}
	words := []string{kind + s.Bridge + s.Network + s.Macvlan + s.IPVlan, s.Mode, s.Port.String()}
	if s.MTU != 0 {
		words = append(words, fmt.Sprint(s.MTU))
	}
	for _, a := range s.Addresses {
		words = append(words, a.String())
	}
	return strings.Join(strings.Fields(strings.Join(append(words, s.MAC.String()), " ")), " ")
}

// TestID: an id is that of one interface of one container on one network, and a removal finds it
// although the rest of the configuration is wrong.
func TestID(t *testing.T) {
	seen := map[string]bool{}
	for _, network := range []string{"a", "b"} {
		for _, of := range [][2]string{{"c", "eth0"}, {"c", "eth1"}, {"d", "eth0"}, {"ce", "th0"}} {
			n, err := parseLoosely([]byte(`{"name":"` + network + `","brige":1}`))
			if err != nil {
				t.Fatal(err)
			}
			id := n.id(of[0], of[1])
			if seen[id] || len(id) > 32 || !strings.HasPrefix(id, prefixOf(network)) {
				t.Errorf("%s: %v has the id %s", network, of, id)
			}
			seen[id] = true
		}
	}
	for path, want := range map[string]string{
		"/var/run/netns/cni-1": "cni-1", "/run/netns/blue": "blue", "/run/netns/12": "/run/netns/12",
		"/proc/12/ns/net": "/proc/12/ns/net", "/run/docker/netns/a": "/run/docker/netns/a",
	} {
		if got := shortNetns(path); got != want {
			t.Errorf("%s is shortened to %s, want %s", path, got, want)
		}
	}
}

// TestAssign: which addresses and routers a result gives.
func TestAssign(t *testing.T) {
	const two = `"interfaces":[{"name":"x"},{"name":"eth0","sandbox":"/n"}],
		"ips":[{"address":"10.9.9.9/24","interface":0},{"address":"10.0.0.7/24","gateway":"10.0.0.1","interface":1}]`
	for _, row := range []struct{ result, ifname, want string }{
		{`"ips":[{"address":"10.0.0.7/24","gateway":"10.0.0.1"}]`, "", "[10.0.0.7/24] []"},
		{
			`"ips":[{"address":"10.0.0.7/24","gateway":"10.0.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]`, "",
			"[10.0.0.7/24] [10.0.0.1]",
		},
		{
			`"ips":[{"address":"fd00::7/64"},{"address":"10.0.0.7/24"}],
			"routes":[{"dst":"::/0","gw":"fd00::1"},{"dst":"0.0.0.0/0","gw":"10.0.0.9"}]`,
			"", "[fd00::7/64 10.0.0.7/24] [fd00::1 10.0.0.9]",
		},
		{two, "eth0", "[10.0.0.7/24] []"},
		{two, "", "[10.9.9.9/24 10.0.0.7/24] []"},
		{`"ips":[{"address":"10.0.0.7/24"}],"routes":[{"dst":"0.0.0.0/0"}]`, "", "neither it nor the address names a router"},
		{`"ips":[],"routes":[{"dst":"10.1.0.0/16","gw":"10.0.0.1"}]`, "", "only default routes without attributes"},
		{
			`"ips":[],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","priority":9}]`, "",
			"only default routes without attributes",
		},
		{`"ips":[{"address":"10.0.0.7/24","interface":7}]`, "eth0", "[] []"},
	} {
		var r current.Result
		if err := json.Unmarshal([]byte(`{"cniVersion":"1.1.0",`+row.result+`}`), &r); err != nil {
			t.Fatal(err)
		}
		var s nsport.Spec
		err := assign(&s, &r, row.ifname)
		got := fmt.Sprint(s.Addresses, s.Gateways)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, row.want) {
			t.Errorf("%s: %q, want %q", row.result, got, row.want)
		}
	}
}

// TestResult: what a result says is what a check asks for.
func TestResult(t *testing.T) {
	var first nsport.Spec
	given := &current.Result{}
	if err := json.Unmarshal([]byte(`{"cniVersion":"1.1.0",
		"ips":[{"address":"10.0.0.7/24","gateway":"10.0.0.1"},{"address":"fd00::7/64"}],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1"}]}`), given); err != nil {
		t.Fatal(err)
	}
	if err := assign(&first, given, ""); err != nil {
		t.Fatal(err)
	}
	r := result(nsport.Info{
		Interface: "eth0", Host: "nsx", MAC: "02:00:00:00:00:01", MTU: 1500,
		Addresses: first.Addresses, Gateways: first.Gateways,
	}, "/n", types.DNS{})
	for _, version := range Versions.SupportedVersions() {
		as, err := r.GetAsVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(as)
		if err != nil {
			t.Fatal(err)
		}
		n, err := parse([]byte(`{"cniVersion":"` + version + `","name":"pods","prevResult":` + string(text) + `}`))
		if err != nil {
			t.Fatal(err)
		}
		back, err := n.previous()
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		var again nsport.Spec
		if err := assign(&again, back, "eth0"); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(fmt.Sprint(first), fmt.Sprint(again)); d != "" {
			t.Errorf("%s: %s", version, d)
		}
	}
}

// TestCoded: an undo that fails hides neither the error nor its code.
func TestCoded(t *testing.T) {
	plugin := types.NewError(11, "busy", "")
	for _, row := range []struct {
		err  error
		code uint
		text string
	}{
		{plugin, 11, "busy"},
		{fmt.Errorf("ipam: %w", plugin), 11, "ipam: busy"},
		{errors.Join(nic.ErrExist, plugin), codeExists, nic.ErrExist.Error() + "; busy"},
		{errors.New("x"), 999, "x"},
	} {
		var got *types.Error
		if !errors.As(coded(row.err), &got) || got.Code != row.code || got.Msg != row.text {
			t.Errorf("%v: %+v", row.err, got)
		}
	}
	if coded(nil) != nil {
		t.Error("success has a code")
	}
}
