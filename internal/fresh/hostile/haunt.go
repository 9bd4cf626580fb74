package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

const (
	uid   = 54399                // the hostile user; no other user has this uid
	place = "/tmp/hostile-54399" // that user's directory
)

// squatted are the users for whom the hostile user creates directories where theirs would be.
var squatted = []int{0, 1000, 54321, 65534}

// roleEnv says which part a process of the hostile user plays.
const roleEnv = "VMNET_HOSTILE_ROLE"

// part is the role of one of those processes.
type part struct {
	role, argument string
	argv           []string
}

// parts are all of them. Their guests have the names of those in tests and in README.md.
func parts(files int) []part {
	const each = 13_000 // a process may have 16,384 (internal/leaktest)
	libvirts :=
		"-chardev socket,id=charmonitor,fd=3,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control " +
			"-object secret,id=masterKey0,format=raw,file=/var/lib/libvirt/qemu/domain-1-web/master-key.aes"
	all := []part{
		{
			"monitor", place + "/p2.qmp",
			words("qemu-system-x86_64 -name guest=P2 -machine q35 -qmp unix:" + place + "/p2.qmp,server=on,wait=off"),
		},
		{"monitor", place + "/web.qmp", words("qemu-system-x86_64 -name guest=web -machine pc " + libvirts)},
		{"swap", "", words("qemu-system-x86_64 -name guest=P2")},
		{
			"name", ") Z 1 (\x1b]0;x\a",
			[]string{"\x1b[2J\n-name\nguest=P2", "\xff\xfe", "-qmp", "unix:/dev/watchdog,server=on"},
		},
		{"switch", place + "/switch", words("vmnet switch run lan0")},
	}
	for n := 0; n < files; n += each {
		all = append(all, part{
			"files", strconv.Itoa(min(each, files-n)),
			words("qemu-system-x86_64 -name guest=many " + libvirts),
		})
	}
	return all
}

// haunt runs the hostile user's processes in the namespaces of this process, which runs as root,
// until SIGTERM. It writes "ready" to standard output once all of them are, and fails if one exits
// before that.
func haunt(files int) (err error) {
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the children
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	made, err := squat()
	defer func() {
		for _, path := range made {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}()
	if err != nil {
		return err
	}
	var running []*exec.Cmd
	defer func() {
		for _, cmd := range running {
			_ = cmd.Process.Kill()
			_, _ = cmd.Process.Wait()
		}
	}()
	for _, p := range parts(files) {
		cmd, err := p.start()
		if err != nil {
			return fmt.Errorf("start %s: %w", p.role, err)
		}
		running = append(running, cmd)
	}
	if cmd, err := realGuest(); err != nil {
		return err
	} else if cmd != nil {
		running = append(running, cmd)
	}
	fmt.Println("ready")
	<-asked
	return all(running)
}

// all returns an error if one of the processes has exited.
func all(running []*exec.Cmd) error {
	var errs []error
	for _, cmd := range running {
		var status syscall.WaitStatus
		if pid, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WNOHANG, nil); err == nil && pid != 0 {
			errs = append(errs, fmt.Errorf("a hostile user's process, %q, was ended: status %#x", cmd.Args, status))
		}
	}
	return errors.Join(errs...)
}

// squat creates the user's directory, and directories with the names of other users' ones.
func squat() (made []string, err error) {
	paths := []string{place}
	for _, uid := range squatted {
		for _, dir := range []string{"/tmp", "/dev/shm"} {
			paths = append(paths, filepath.Join(dir, fmt.Sprintf("vmnet-%d", uid)))
		}
	}
	for _, path := range paths {
		err := os.Mkdir(path, 0o777)
		if errors.Is(err, fs.ErrExist) && path != place { // of another run at the same time
			continue
		}
		if err == nil {
			made = append(made, path)
			err = errors.Join(os.Chmod(path, 0o777), os.Chown(path, uid, uid))
		}
		if err != nil {
			return made, err
		}
	}
	return made, nil
}

// start starts a process and waits until it plays its part.
func (p part) start() (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = p.argv
	cmd.Env = []string{roleEnv + "=" + p.role + " " + p.argument, "PATH=/usr/bin:/bin"}
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	cmd.SysProcAttr = ofUser()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("it says %q", line), err, cmd.Process.Kill(), cmd.Wait())
	}
	return cmd, nil
}

func ofUser() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
}

// realGuest starts a QEMU as the hostile user, or returns nil if there is no QEMU. It runs no guest
// code; its monitor is real.
func realGuest() (*exec.Cmd, error) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, nil
	}
	cmd := exec.Command(path,
		words("-name guest=P2 -S -nodefaults -display none -machine pc -m 16 -qmp unix:"+place+
			"/real.qmp,server=on,wait=off")...)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	cmd.SysProcAttr = ofUser()
	return cmd, cmd.Start()
}
