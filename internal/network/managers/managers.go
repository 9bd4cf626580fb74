// Package managers keeps NetworkManager and systemd-networkd from the devices of networks, and says
// what the manager of an interface needs so that the host has its addresses on a network's bridge
// after the next boot.
package managers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Host is where the managers' files are.
type Host struct {
	// Root is the directory that stands for /, in tests.
	Root string
	// Run runs a program; nil starts it.
	Run func(ctx context.Context, argv ...string) error
	// Quiet says that managers that run go on with what they have read.
	Quiet bool
}

// File is one that a network has in a manager's directory.
type File struct {
	Path    string      `json:"path"`
	Content string      `json:"content"`
	Mode    fs.FileMode `json:"-"`
	reload  string      // the command by which its manager reads it
	running string      // a directory that is there while the manager runs
}

// header begins each file: one without it is somebody else's, and never changed.
func header(network string) string {
	return "# Written by vmnet for network " + network + ", and removed by vmnet network delete " + network + ".\n"
}

func (h Host) path(p string) string { return filepath.Join("/", h.Root, p) }

func (h Host) exists(p string) bool {
	_, err := os.Stat(h.path(p))
	return err == nil
}

// plain are the names that mean the same in all files. A manager takes others for patterns.
var plain = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

const (
	nmDir       = "/etc/NetworkManager"
	nmRunning   = "/run/NetworkManager"
	networkdDir = "/etc/systemd/network"
	netif       = "/run/systemd/netif"
)

// nmConf returns the file that keeps NetworkManager off devices.
func (h Host) nmConf(network, content string) File {
	return File{
		Path: h.path(nmDir + "/conf.d/vmnet-" + network + ".conf"), Content: header(network) + content, Mode: 0o644,
		reload: "nmcli general reload conf", running: h.path(nmRunning),
	}
}

// nmProfile returns a profile of NetworkManager, which reads none that others may read.
func (h Host) nmProfile(network, suffix, content string) File {
	return File{
		Path:    h.path(nmDir + "/system-connections/" + profileName(network) + suffix + ".nmconnection"),
		Content: header(network) + content, Mode: 0o600,
		reload: "nmcli connection reload", running: h.path(nmRunning),
	}
}

// profileName is the name of a network's profile of NetworkManager.
func profileName(network string) string { return "vmnet-" + network }

// networkd returns a file that comes before those of others, which systemd-networkd reads in the
// order of their names.
func (h Host) networkd(network, suffix, content string) File {
	return File{
		Path: h.path(networkdDir + "/05-vmnet-" + network + suffix + ".network"), Content: header(network) + content,
		Mode: 0o644, reload: "networkctl reload", running: h.path(netif),
	}
}

// KeepOff returns the files that keep the managers that this host has from devices.
func (h Host) KeepOff(network string, devices []string) (files []File) {
	devices = slices.DeleteFunc(slices.Clone(devices), func(d string) bool { return !plain.MatchString(d) })
	if len(devices) == 0 {
		return nil
	}
	if h.exists(nmDir) {
		files = append(files, h.nmConf(network, unmanagedByNM(devices)))
	}
	if h.exists(networkdDir) {
		files = append(files, h.networkd(network, "", unmanaged(devices)))
	}
	return files
}

func unmanagedByNM(devices []string) string {
	return "[keyfile]\nunmanaged-devices+=interface-name:" + strings.Join(devices, ";interface-name:") + "\n"
}

func unmanaged(devices []string) string {
	return "[Match]\nName=" + strings.Join(devices, " ") + "\n\n[Link]\nUnmanaged=yes\n"
}

// Missing returns those of the files that are not there as they should be. A file of somebody else
// is never missing.
func (h Host) Missing(network string, files []File) (missing []File, err error) {
	for _, f := range files {
		text, err := os.ReadFile(f.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case string(text) == f.Content || !strings.HasPrefix(string(text), header(network)):
			continue
		}
		missing = append(missing, f)
	}
	return missing, nil
}

// Left returns the files of a network that are there.
func (h Host) Left(network string) (files []File) {
	for _, f := range []File{
		h.nmConf(network, ""), h.nmProfile(network, "", ""), h.nmProfile(network, "-uplink", ""),
		h.networkd(network, "", ""), h.networkd(network, "-uplink", ""), h.networkd(network, "-bridge", ""),
	} {
		text, err := os.ReadFile(f.Path)
		if err == nil && strings.HasPrefix(string(text), header(network)) {
			files = append(files, f)
		}
	}
	return files
}

// Write writes files, each whole or not at all, and has the managers read them.
func (h Host) Write(ctx context.Context, files []File) error {
	for _, f := range files {
		if err := f.write(); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	h.reload(ctx, files)
	return nil
}

func (f File) write() error {
	if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(f.Path), ".vmnet-*")
	if err != nil {
		return err
	}
	_, err = temp.WriteString(f.Content)
	if err = errors.Join(err, temp.Chmod(f.Mode), temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), f.Path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// Remove removes files, and has the managers know that.
func (h Host) Remove(ctx context.Context, files []File) error {
	for _, f := range files {
		if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	h.reload(ctx, files)
	return nil
}

const reloadTimeout = 10 * time.Second

// reload has the managers that run read their files again. One that does not answer reads them when
// it starts again.
func (h Host) reload(ctx context.Context, files []File) {
	if h.Quiet {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reloadTimeout)
	defer cancel()
	done := map[string]bool{}
	for _, f := range files {
		if _, err := os.Stat(f.running); err != nil || done[f.reload] {
			continue
		}
		done[f.reload] = true
		_ = h.run(ctx, strings.Fields(f.reload)...)
	}
}

func (h Host) run(ctx context.Context, argv ...string) error {
	if h.Run != nil {
		return h.Run(ctx, argv...)
	}
	return exec.CommandContext(ctx, argv[0], argv[1:]...).Run()
}
