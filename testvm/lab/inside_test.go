package lab_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
	"vmnet/vhost"
)

// run runs a command and returns what it wrote.
func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
	return string(out)
}

func TestLabIsTheFullKernelOnThisMachinesFiles(t *testing.T) {
	lab.Inside(t)
	k, err := lab.FindKernel()
	if err != nil {
		t.Fatal(err)
	}
	if release := strings.TrimSpace(run(t, "uname", "-r")); release != k.Release {
		t.Errorf("kernel %s, want %s", release, k.Release)
	}
	if _, err := os.Stat("inside_test.go"); err != nil {
		t.Errorf("the working directory is not the package's: %v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil || st.Type != unix.OVERLAYFS_SUPER_MAGIC {
		t.Errorf("the root's file system is %#x, %v", st.Type, err)
	}
	if os.Getuid() != 0 {
		t.Error("not root")
	}
	if name, _ := os.Hostname(); name != "lab" {
		t.Errorf("hostname %q", name)
	}
	if now := time.Now(); now.Year() < 2024 {
		t.Errorf("the clock says %s", now)
	}
	for _, dir := range []string{"/dev/shm", "/run", t.TempDir()} {
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
			t.Error(err)
		}
	}
	if out := run(t, "ip", "-br", "link", "show", "lo"); !strings.Contains(out, "LOOPBACK,UP") {
		t.Errorf("lo: %s", out)
	}
}

// TestLabKernelLoadsWhatIsAskedFor: the kernel loads modules on demand; the test names none itself.
func TestLabKernelLoadsWhatIsAskedFor(t *testing.T) {
	lab.Inside(t)
	for _, c := range []struct{ make, show, want string }{
		{"ip link add lab0 type dummy", "ip link show lab0", "lab0:"},
		{"ip link add lab1 type bridge vlan_filtering 1", "ip -d link show lab1", "vlan_filtering 1"},
		{"ip link add link lab0 name lab2 type vlan id 5", "ip -d link show lab2", "802.1Q id 5"},
		{"ip link add link lab0 name lab3 type ipvtap mode l2", "ip -d link show lab3", "ipvtap"},
		{"ip link add lab4 type veth peer name lab5", "ip link show lab5", "lab5@lab4"},
		{"ip link add link lab4 name lab6 type macvtap mode bridge", "ip -d link show lab6", "macvtap"},
		{"tc qdisc add dev lab0 root netem delay 10ms", "tc qdisc show dev lab0", "netem"},
		{"ip tuntap add dev lab7 mode tap", "ip link show lab7", "lab7:"},
	} {
		run(t, strings.Fields(c.make)...)
		if fields := strings.Fields(c.make); fields[0] == "ip" && fields[1] == "link" {
			defer func() {
				_ = exec.Command("ip", "link", "del", strings.Fields(c.show)[len(strings.Fields(c.show))-1]).Run()
			}()
		}
		if out := run(t, strings.Fields(c.show)...); !strings.Contains(out, c.want) {
			t.Errorf("%s: %s", c.make, out)
		}
	}
	run(t, "ip", "tuntap", "del", "dev", "lab7", "mode", "tap")
}

func TestLabVhost(t *testing.T) {
	lab.Inside(t)
	t.Run("without its module", func(t *testing.T) {
		lab.WithoutModule(t, "vhost_net")
		if f, err := vhost.Open(); err == nil || !strings.Contains(err.Error(), "modprobe vhost_net") {
			t.Errorf("got %v, %v", f, err)
		}
	})
	f, err := vhost.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if bits, err := vhost.Features(f); err != nil || bits&vhost.FeatureVnetHdr == 0 {
		t.Errorf("features %#x, %v", bits, err)
	}
}

func TestLabWirelessCard(t *testing.T) {
	lab.Inside(t)
	run(t, "modprobe", "mac80211_hwsim", "radios=1")
	defer func() { _ = exec.Command("modprobe", "-r", "mac80211_hwsim").Run() }()
	nstest.Eventually(t, 60*time.Second, "a wireless interface is there", func() bool {
		cards, _ := filepath.Glob("/sys/class/net/*/phy80211")
		return len(cards) > 0
	})
}

// TestLabReapsOrphans: orphaned processes do not remain as zombies.
func TestLabReapsOrphans(t *testing.T) {
	lab.Inside(t)
	pid := strings.TrimSpace(run(t, "sh", "-c", "sleep 0.2 >/dev/null 2>&1 & echo $!"))
	nstest.Eventually(t, 60*time.Second, "process "+pid+" is gone", func() bool {
		_, err := os.Stat("/proc/" + pid)
		return err != nil
	})
}
