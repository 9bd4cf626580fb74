// Program hostile runs a command, such as make test, in a hostile environment: with SIGHUP and
// SIGINT ignored, 200 inherited files and room for few more. The namespaces of each package's tests
// hold the processes of a hostile user: look-alikes of guests, forged labels, files that change
// under /proc, and very many files.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

const (
	inherited = 200 // files
	openFiles = 256 // the soft limit, which leaves room for few others
)

// options say what runs beside the command, and how often the command runs.
type options struct {
	files  int           // that hostile processes hold in each package's namespaces
	killed time.Duration // after which a first run is killed; 0 for none
	copies int           // that run at once
}

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		fail(play(role))
	}
	var o options
	beside := flag.Bool("beside",
		false, "run the hostile user's processes until SIGTERM, for internal/leaktest")
	flag.IntVar(&o.files, "files", 2000, "how many `FILES` the hostile processes hold")
	flag.DurationVar(&o.killed, "killed", 0, "first kill a run of the command after this `TIME`")
	flag.IntVar(&o.copies, "copies", 1, "run the command `N` times at once")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(),
			"usage: hostile [-files N] [-killed TIME] [-copies N] COMMAND [ARGUMENT...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	switch {
	case *beside && flag.NArg() == 0:
		fail(haunt(o.files))
	case *beside || flag.NArg() == 0 || o.copies < 1:
		flag.Usage()
		os.Exit(2)
	default:
		fail(run(o, flag.Args()))
	}
}

// fail ends the program, with the status of the command if that is the reason.
func fail(err error) {
	var status *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &status) && status.Exited():
		os.Exit(status.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "hostile:", err)
	os.Exit(1)
}

// run runs the command as often as requested.
func run(o options, argv []string) error {
	if err := impoverish(o.files); err != nil {
		return err
	}
	var files []*os.File
	for range inherited {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	start := func() (*exec.Cmd, error) {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, files
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
		return cmd, cmd.Start()
	}
	if o.killed > 0 {
		if err := kill(start, o.killed); err != nil {
			return err
		}
	}
	var running []*exec.Cmd
	var errs []error
	for range o.copies {
		cmd, err := start()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		running = append(running, cmd)
	}
	for _, cmd := range running {
		errs = append(errs, cmd.Wait())
	}
	return errors.Join(errs...)
}

// kill kills a run with its whole process group.
func kill(start func() (*exec.Cmd, error), after time.Duration) error {
	cmd, err := start()
	if err != nil {
		return err
	}
	timer := time.AfterFunc(after, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer timer.Stop()
	if err := cmd.Wait(); err == nil {
		return fmt.Errorf("the run that was to be killed after %v had exited before", after)
	}
	fmt.Printf("hostile: killed a run after %v\n", after)
	return nil
}

// impoverish restricts this process as shells and service managers may do; the command inherits the
// restrictions.
func impoverish(files int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Setenv("VMNET_TEST_BESIDE", fmt.Sprintf("%s -beside -files %d", self, files)); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	limit.Cur = min(openFiles, limit.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("set RLIMIT_NOFILE: %w", err)
	}
	return nil
}
