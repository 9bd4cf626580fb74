// Package stablemac derives Ethernet addresses that stay the same on one
// machine and differ between machines.
package stablemac

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"vmnet/internal/kernel/procfd"
)

// The files that distinguish machines.
const (
	machineIDFile = "/etc/machine-id"                 // machine-id(5)
	bootIDFile    = "/proc/sys/kernel/random/boot_id" // random(4): a UUID, new at each boot
	hostNameFile  = "/proc/sys/kernel/hostname"       // differs in containers that share a kernel and its boot id
)

// ErrNoMachineID matches the error for a machine without an id: its addresses last until the next
// boot.
var ErrNoMachineID = errors.New("the host has no machine id")

// New returns an address that begins with prefix (1 to 5 bytes) and continues with a hash of the
// machine's id and the texts. A machine without an id, as [Check] reports it, is identified by its
// boot and its name instead: two hosts never silently get equal addresses.
func New(prefix []byte, texts ...string) net.HardwareAddr {
	return derive(identity("/"), prefix, texts)
}

func derive(id string, prefix []byte, texts []string) net.HardwareAddr {
	sum := hash(append([]string{id}, texts...))
	return append(bytes.Clone(prefix), sum[:6-len(prefix)]...)
}

func hash(texts []string) [sha256.Size]byte {
	var all []byte
	for _, t := range texts {
		all = append(append(all, t...), 0) // so that different lists of texts never hash alike
	}
	return sha256.Sum256(all)
}

// Check returns an error if the addresses of New change at the next boot of the machine whose root
// directory is root. The error matches ErrNoMachineID with errors.Is and names the cure.
func Check(root string) error {
	_, err := machineID(root)
	if err == nil {
		return nil
	}
	return fmt.Errorf(
		"%w, so vmnet's addresses change at the next boot: %w (systemd-machine-id-setup, or dbus-uuidgen --ensure=%s)",
		ErrNoMachineID, err, machineIDFile)
}

// identity returns a text that is the same as long as the machine should have the same addresses.
// It reads only files that every user may read, so that root and others get the same addresses. The
// firmware's UUID is readable by root alone, and not always unique.
func identity(root string) string {
	if id, err := machineID(root); err == nil {
		return id
	}
	return read(root, bootIDFile) + "\n" + read(root, hostNameFile)
}

// machineID reads the machine's id. Images are shipped with an empty file, or with the word
// "uninitialized" in it, for systemd to fill at the first boot (machine-id(5)).
func machineID(root string) (string, error) {
	id := read(root, machineIDFile)
	hex := strings.ReplaceAll(id, "-", "")
	switch {
	case id == "":
		if _, err := os.Stat(filepath.Join(root, machineIDFile)); errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("there is no %s", machineIDFile)
		}
		return "", fmt.Errorf("%s is empty, or cannot be read", machineIDFile)
	case len(hex) != 32 || strings.Trim(hex, "0123456789abcdefABCDEF") != "" || strings.Trim(hex, "0") == "":
		return "", fmt.Errorf("%s holds %.40q, not an id of 32 hexadecimal digits", machineIDFile, id)
	}
	return id, nil
}

// read returns the start of a file without the space around it, or "". os.ReadFile would start Go's
// poller, which the bridge helper does without.
func read(root, path string) string {
	open := procfd.OpenRoots
	if root != "/" { // it may be a container's
		open = procfd.OpenRegular
	}
	f, err := open(filepath.Join(root, path))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 4096))
	return string(bytes.TrimSpace(b))
}

// HostMACByte is the first byte of every tap's own address: high, so that a
// bridge that follows its lowest port never takes it.
const HostMACByte = 0xfe

// HostMAC returns a tap's own address for a guest's address.
func HostMAC(guest net.HardwareAddr) net.HardwareAddr {
	mac := bytes.Clone(guest)
	mac[0] = HostMACByte
	return mac
}

// UUID returns a UUID that is derived as the addresses of [New] are (version 8 of RFC 9562).
func UUID(texts ...string) string {
	sum := hash(append([]string{identity("/"), "uuid"}, texts...))
	b := sum[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Boot returns the id of the kernel's present boot.
func Boot() string { return read("/", bootIDFile) }
