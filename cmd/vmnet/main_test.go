package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"vmnet/internal/kernel/tun"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/internal/sandbox"
	"vmnet/libvirt/libvirttest"
	"vmnet/testvm/lab"
)

func TestMain(m *testing.M) {
	commands := map[string]func(){
		"vmnet": main, "vmnet-network-agent": main, "signalled": signalled, "flooding": flooding,
		"confined": confined,
	}
	if _, ok := commands[filepath.Base(os.Args[0])]; !ok {
		leaktest.Enclose()
		_ = os.Setenv(sandboxEnv, string(sandbox.Strict)) // a missing system call shows where it is made
	}
	testscript.Main(leakChecked{m}, commands)
}

// leakChecked fails tests that leave goroutines behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// TestScripts runs the scripts that need neither root nor a guest.
func TestScripts(t *testing.T) { runScripts(t, "testdata", func(*testscript.Env) {}) }

// TestLiveHost runs the scripts that work in their own network namespace, $NETNS.
func TestLiveHost(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	runScripts(t, "testdata/host", ownNetns)
}

// TestLabScripts runs those that need a kernel whose bridges filter VLANs.
func TestLabScripts(t *testing.T) {
	lab.Inside(t)
	runScripts(t, "testdata/lab", ownNetns)
}

// TestLiveGuest runs the scripts that also start guests, with unique names: $VM and $VM2.
func TestLiveGuest(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	_, err := exec.LookPath(qemuProgram)
	nstest.Require(t, "qemu", err == nil, "apt install qemu-system-x86")
	_, err = os.Stat(tun.Device)
	nstest.Require(t, "tun", err == nil, "modprobe tun")
	runScripts(t, "testdata/guest", ownNetns)
}

// TestLiveLibvirt runs the scripts with a libvirt guest $VM, whose CPUs are stopped and which
// releases devices nevertheless.
func TestLiveLibvirt(t *testing.T) {
	libvirttest.Require(t)
	runScripts(t, "testdata/libvirt", func(env *testscript.Env) {
		tb := env.T().(testing.TB)
		ns := nstest.New(tb)
		daemon := libvirttest.Start(tb, ns)
		vm := uniqueVM()
		daemon.Define(fmt.Sprintf(standingDomain, vm))
		daemon.Virsh("start", "--paused", vm)
		env.Setenv("NETNS", ns.Path())
		env.Setenv("VM", vm)
		env.Setenv("LIBVIRT_DEFAULT_URI", daemon.URI())
	})
}

// standingDomain has a machine type whose slots release a device without the guest.
const standingDomain = `<domain type='qemu'>
  <name>%s</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-6.0'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='2' model='pcie-root-port'/>
    <controller type='pci' index='3' model='pcie-root-port'/>
    <controller type='pci' index='4' model='pcie-root-port'/>
  </devices>
</domain>`

func ownNetns(env *testscript.Env) {
	ns := nstest.New(env.T().(testing.TB))
	env.Setenv("NETNS", ns.Path())
	env.Setenv("VM", uniqueVM())
	env.Setenv("VM2", uniqueVM())
}

// scriptTime bounds the time of all scripts of a directory; afterwards their programs are killed.
// They take half a minute on an idle machine.
const scriptTime = 10 * time.Minute

func runScripts(t *testing.T, dir string, setup func(*testscript.Env)) {
	docs, err := filepath.Abs("../../docs")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:         dir,
		WorkdirRoot: t.TempDir(), // -run may name one script
		Setup: func(env *testscript.Env) error {
			env.Values[guestsKey{}] = guests{}
			env.Setenv("GORACE", "atexit_sleep_ms=0") // otherwise each vmnet sleeps a second under -race
			env.Setenv(sandboxEnv, string(sandbox.Strict))
			env.Setenv("DOCS", docs)
			setup(env)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":      cmdExits,
			"eventually": cmdEventually,
			"qemu":       cmdQEMU,
			"stopqemu":   cmdStopQEMU,
			"hold":       cmdHold,
			"query":      cmdQuery,
		},
		RequireUniqueNames: true,
		Deadline:           time.Now().Add(scriptTime),
	})
}

var vms atomic.Int64

// uniqueVM returns a name that no other guest on this machine has. It is short enough that the
// names of its taps contain it in full.
func uniqueVM() string {
	name := "v" + strconv.FormatInt(int64(os.Getpid()), 36) + strconv.FormatInt(vms.Add(1), 36)
	return strings.ToUpper(name)
}
