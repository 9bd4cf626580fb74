package main

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/libvirt/libvirttest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// sessionScript is libvirt's session mode: a libvirtd of the user nobody, which has no privilege,
// starts a guest with an interface on br0. $1 is its bridge_helper. Machine, network, /run, /var
// and /etc are the script's own. The shell is the first process of a process namespace, so all ends
// with it.
const sessionScript = `set -e
mount -t proc proc /proc
private_dirs
mkdir -p /var/home/run /var/home/config/libvirt
cat >/var/home/config/libvirt/qemu.conf <<E
bridge_helper = "$1"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
E
chown -R 65534:65534 /var/home
chmod 700 /var/home/run
cat >/var/domain.xml <<E
<domain type='qemu'>
  <name>session</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <interface type='bridge'><source bridge='$2'/><model type='virtio'/></interface>
  </devices>
</domain>
E
ip link set lo up
ip link add br0 type bridge
ip link add br1 type bridge
export HOME=/var/home XDG_RUNTIME_DIR=/var/home/run XDG_CONFIG_HOME=/var/home/config PATH=/usr/sbin:/usr/bin:/sbin:/bin
nobody="setpriv --reuid 65534 --regid 65534 --clear-groups"
$nobody libvirtd >/var/home/log 2>&1 &
n=0
until $nobody virsh -q -c qemu:///session version >/dev/null 2>&1; do
  n=$((n + 1))
  [ $n -lt 100 ] || { cat /var/home/log; exit 3; }
  sleep 0.2
done
$nobody virsh -q -c qemu:///session create --paused /var/domain.xml
ip -o link show master br0 | sed 's/^/PORT /'
$nobody virsh -q -c qemu:///session destroy session
n=0
while [ -n "$(ip -o link show master br0)" ]; do
  n=$((n + 1))
  [ $n -lt 100 ] || { echo "it is still there"; exit 4; }
  sleep 0.1
done
echo GONE
`

func TestLiveLibvirtSession(t *testing.T) {
	i := install(t)
	i.config("bridge.conf", "allow br0\n")
	for _, program := range []string{"libvirtd", "virsh"} {
		nstest.Require(t, "libvirt", available(program), "apt install libvirt-daemon libvirt-clients")
	}
	nstest.Require(t, "qemu", available(qemuSystem), "apt install qemu-system-x86")
	out, err := i.session("br0")
	if err != nil || !strings.Contains(out, "alias vmnet plain uid=65534 source=br0") ||
		strings.Count(out, "PORT ") != 1 || !strings.Contains(out, "GONE") {
		t.Errorf("%v: %s", err, out)
	}
	// libvirt passes on what our stderr has told when it looks, which is too early now and then.
	reason := false
	for range 5 {
		out, err = i.session("br1")
		if err == nil || !strings.Contains(out, "failed to communicate with bridge helper") ||
			strings.Contains(out, "PORT ") {
			t.Fatalf("denied: %v: %s", err, out)
		}
		if reason = strings.Contains(out, `qemu-netup: bridge "br1": no line of `); reason {
			break
		}
	}
	if !reason {
		t.Errorf("denied without a reason: %s", out)
	}
}

func (i *installation) session(bridge string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), nstest.Patience(2*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-s", i.program, bridge)
	cmd.Stdin = strings.NewReader(libvirttest.Private + sessionScript)
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:    syscall.SIGKILL,
		Cloneflags:   syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Unshareflags: syscall.CLONE_NEWNS,
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// standing is a guest whose machine gives devices up without it.
const standing = `<domain type='qemu'>
  <name>standing</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-6.0'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='2' model='pcie-root-port'/>
    <controller type='pci' index='3' model='pcie-root-port'/>
  </devices>
</domain>`

// TestLiveLibvirtSessionAttach has the user nobody attach to a guest of its own libvirt.
func TestLiveLibvirtSessionAttach(t *testing.T) {
	libvirttest.Require(t)
	h := newHost(t).withVMNet()
	h.config("bridge.conf", "allow br0\n")
	daemon, _ := libvirttest.StartSession(t, h.ns)
	daemon.Create(standing)
	attach := []string{"--libvirt", daemon.URI(), "attach", "--vm", "standing", "--bridge", "br0"}
	h.fails(h.nobodysVMNet(attach...), exitFailure, "only root can", "--via monitor")
	h.ok(h.nobodysVMNet(append(attach, "--via", "monitor", "--queues", "2")...), "standing/net0: tap", "2 queues")
	h.ok(h.nobodysVMNet(append(attach, "--via", "monitor")...), "unchanged")
	nics, err := h.List(t.Context(), "standing")
	if err != nil || len(nics) != 1 || nics[0].UID != nobody || nics[0].Via != nic.ViaMonitor || nics[0].Queues != 2 {
		t.Errorf("root sees %+v, %v", nics, err)
	}
	h.ok(h.nobodysVMNet("--libvirt", daemon.URI(), "detach", "--vm", "standing", "--nic", "net0"), "detached")
	h.gone("standing-net0")

	// Root hands the user's libvirt a tap by its name.
	h.Libvirt = daemon.URI()
	for queues := 1; queues <= 2; queues++ {
		spec := nic.Spec{Target: nic.Target{VM: "standing"}, Bridge: "br0", Queues: queues}
		if _, err := h.Attach(h.context(20*time.Second), spec); err != nil {
			t.Fatal(err)
		}
		h.asItShouldBe()
		if _, err := h.Detach(h.context(20*time.Second),
			tapmgr.DetachSpec{Target: spec.Target, NIC: "net0"}); err != nil {
			t.Error(err)
		}
		h.gone("standing-net0")
	}
	h.Libvirt = ""
	_, err = h.Attach(h.context(20*time.Second), nic.Spec{Target: nic.Target{VM: "standing"}, Bridge: "br0"})
	if err == nil || !strings.Contains(err.Error(), "managed by libvirt") {
		t.Errorf("without its libvirt: %v", err)
	}
}
