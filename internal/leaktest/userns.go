package leaktest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// userNSEnv says to the tests of an ordinary user, who asked for a user namespace, how that went:
// userNSMade, or why there is none.
const (
	userNSEnv  = "VMNET_TEST_USERNS"
	userNSMade = "made"
)

// reportFD is where the first process of a user namespace reports that it cannot prepare it.
const reportFD = 3

// UserNS reports whether the tests run in a user namespace that [MainInUserNS] made for an ordinary
// user. If they do not, err says why; for root it is nil.
func UserNS() (in bool, err error) {
	switch text := os.Getenv(userNSEnv); text {
	case "":
		return false, nil
	case userNSMade:
		return true, nil
	default:
		return false, errors.New(text)
	}
}

// userNS returns the attributes of a process that is root in a user namespace of its own, in which
// no id but the caller's means anything (user_namespaces(7)).
func userNS() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
}

// runInUserNS runs the tests in namespaces that belong to a user namespace, and exits. If the
// machine does not let an ordinary user do that, it returns why.
func runInUserNS(self string, signals <-chan os.Signal) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := os.Setenv(userNSEnv, userNSMade); err != nil {
		return err
	}
	cmd := initCommand(self, userNS())
	cmd.ExtraFiles = []*os.File{w}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	report, err := io.ReadAll(r)
	if err == nil && len(report) > 0 {
		err = errors.New(string(report))
	}
	if err != nil {
		return errors.Join(err, ignoreExit(cmd.Wait()))
	}
	os.Exit(await(cmd, signals))
	return nil
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// reportUserNS ends the wait of the process that started this one, the first of its user namespace:
// it runs the tests elsewhere if err is not nil, and then this process exits.
func reportUserNS(err error) {
	if in, _ := UserNS(); !in {
		return
	}
	report := os.NewFile(reportFD, "report")
	if err != nil {
		_, _ = report.WriteString(err.Error())
		os.Exit(1)
	}
	_ = report.Close()
}
