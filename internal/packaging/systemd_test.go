//go:build packages

package packaging

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
)

// services are those of the package that the machine runs, and whether an upgrade restarts them.
var services = map[string]bool{
	"vmnet-watch.service": true, "vmnet-switch@sw0.service": false, "vmnet-network@lab.service": false,
}

// guest is the unit of a guest that starts at boot, as an administrator writes one. Its QEMU runs
// no program, which makes no difference to vmnet.
const guest = `[Unit]
Description=Guest P2
[Service]
ExecStart=qemu-system-x86_64 -name guest=P2 -qmp unix:/run/p2.qmp,server=on,wait=off \
	-S -nodefaults -display none -machine q35 -m 64 -device pcie-root-port,id=spare,chassis=1
[Install]
WantedBy=multi-user.target
`

// testSystemd has a machine with systemd install the package, run what is in it over a reboot and
// an upgrade, and remove it.
func testSystemd(t *testing.T, path string) {
	m := newMachine(t)
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(m.dir, "root/one.deb"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.boot()
	// As README.md says; what the package depends on is there.
	m.run("apt-get install -y --no-install-recommends -o APT::Sandbox::User=root /root/one.deb")
	if out := m.run("systemctl list-units --all --no-legend 'vmnet*'"); out != "" {
		t.Errorf("installing it has started:\n%s", out)
	}
	m.configure()
	m.allRun("started")

	m.halt()
	m.boot()
	m.allRun("booted")
	m.guestHasItsNIC("after a boot")

	before := map[string]string{}
	for unit := range services {
		before[unit] = m.property(unit, "MainPID")
	}
	m.run(nextVersion)
	m.allRun("upgraded")
	for unit, restarted := range services {
		if after := m.property(unit, "MainPID"); (after != before[unit]) != restarted {
			t.Errorf("an upgrade has left %s with the process %s, before it %s; want another one: %v", unit, after,
				before[unit], restarted)
		}
	}
	m.guestHasItsNIC("after an upgrade")
	const sw = "vmnet-switch@sw0.service"
	m.run("systemctl reload " + sw)
	m.allRun("reloaded")
	if pid := m.property(sw, "MainPID"); pid == before[sw] {
		t.Errorf("reloaded, %s still runs as process %s", sw, pid)
	}

	m.run("dpkg --no-triggers -r vmnet")
	if out := m.run("systemctl list-units --no-legend --state=active,failed 'vmnet*'"); out != "" {
		t.Errorf("removed, there are still:\n%s", out)
	}
	if out := m.try("pgrep -a ^vmnet"); !strings.HasPrefix(out, "exit status") {
		t.Errorf("removed, it still runs:\n%s", out)
	}
	if out := m.run("ip -br link show dev P2-net0"); !strings.Contains(out, "UP") {
		t.Errorf("removed, the guest's NIC is %q", out)
	}
	m.run("dpkg -P vmnet")
	mine := "/etc/vmnet /etc/vmnet/guests.d /etc/vmnet/guests.d/P2.yaml /etc/vmnet/networks.d" +
		" /etc/vmnet/networks.d/lab.yaml /etc/vmnet/switch /etc/vmnet/switch/sw0.env"
	if left := strings.Join(m.ours(), " "); left != mine {
		t.Errorf("a purge leaves %q, want what the administrator has written: %q", left, mine)
	}
	if out := m.try("systemctl list-unit-files --no-legend 'vmnet*' || ls -d /run/vmnet"); strings.Contains(out,
		".service") || !strings.Contains(out, "No such file") {
		t.Errorf("purged, there are still:\n%s", out)
	}
}

// configure is what an administrator does after the installation: a switch, a network, a guest.
func (m *machine) configure() {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, "etc/systemd/system/p2.service"), []byte(guest), 0o644); err != nil {
		m.t.Fatal(err)
	}
	m.run(`echo 'OPTIONS="--tap tap0 --tap tap1,vlan=5"' >/etc/vmnet/switch/sw0.env
		echo 'nics: {net0: {network: lab, ip: 10.66.0.20, port-security: all}}' >/etc/vmnet/guests.d/P2.yaml
		systemctl daemon-reload
		systemctl -q enable --now vmnet-watch vmnet-switch@sw0
		vmnet network create lab --nat --dhcp --subnet 10.66.0.0/24 --ipv6 none
		systemctl -q enable p2`)
}

// allRun wants the services to run, and the switch and the network to work.
func (m *machine) allRun(when string) {
	m.t.Helper()
	for unit := range services {
		if state := m.property(unit, "ActiveState") + " " + m.property(unit, "NRestarts"); state != "active 0" {
			m.t.Errorf("%s, %s is %s", when, unit, state)
		}
	}
	if out := m.run("vmnet switch show sw0; vmnet network check"); !strings.Contains(out, "tap1") ||
		!strings.Contains(out, "no difference") {
		m.t.Errorf("%s:\n%s", when, out)
	}
}

// guestHasItsNIC wants the NIC that the guest's file declares.
func (m *machine) guestHasItsNIC(when string) {
	m.t.Helper()
	nstest.Eventually(m.t, 30*time.Second, when+" the guest has its NIC", func() bool {
		out := m.try("vmnet list")
		return strings.Contains(out, "P2-net0") && strings.Contains(m.try("vmnet check"), "no difference")
	})
}
