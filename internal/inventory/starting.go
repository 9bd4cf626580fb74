package inventory

import (
	"fmt"
	"os"
	"strings"
	"time"

	"vmnet/tapmgr/nic"
)

// IsOpenedByName reports whether the process that opens the device by its name is its VMM: vmnet
// has made it and closed it again. Its VMM need not be a QEMU, and has no monitor that vmnet asks.
func (dev *Device) IsOpenedByName() bool {
	return dev.Want.Via == nic.ViaName && dev.Want.Phase != nic.PhaseAttaching
}

// VMMPID returns the VMM that holds the device, or 0 if the caller sees none.
func (dev *Device) VMMPID() int { return dev.vmmPID(now()) }

func (dev *Device) vmmPID(m moment) int {
	if dev.IsOpenedByName() {
		return dev.firstHolder(func(int) bool { return true })
	}
	return dev.firstHolder(m.isVMM)
}

// OtherHolder returns a process that holds the device and is no VMM, such as a vmnet that works on
// it, or 0 if the caller sees none.
func (dev *Device) OtherHolder() int { return dev.otherHolder(now()) }

func (dev *Device) otherHolder(m moment) int {
	if dev.IsOpenedByName() {
		return 0
	}
	return dev.firstHolder(func(pid int) bool { return !m.isVMM(pid) })
}

// startingFor bounds the time from the creation of a guest's device until its QEMU opens it.
const startingFor = 5 * time.Minute

// IsStarting reports whether the device was made for a guest that is about to start.
func (dev *Device) IsStarting() bool { return dev.isStarting(now()) }

func (dev *Device) isStarting(m moment) bool {
	if dev.Want.Phase != nic.PhaseStarting || len(dev.Holders) > 0 {
		return false
	}
	if dev.Want.Until != 0 {
		return m.sinceBoot() < dev.Want.Until
	}
	age := m.sinceBoot() - dev.Want.Since
	return age >= 0 && age < int64(startingFor.Seconds())
}

// SinceBoot returns CLOCK_BOOTTIME in whole seconds (/proc/uptime, proc(5)), or 0 if it cannot be
// read.
func SinceBoot() int64 {
	var seconds float64
	text, err := os.ReadFile("/proc/uptime")
	if err == nil {
		_, err = fmt.Sscan(strings.TrimSpace(string(text)), &seconds)
	}
	if err != nil {
		return 0
	}
	return int64(seconds)
}

// startingText says what a device that IsStarting waits for.
func (dev *Device) startingText() string {
	if dev.IsOpenedByName() {
		return "it waits for a VMM that opens it by its name"
	}
	return "it was made for a guest that is about to start"
}
