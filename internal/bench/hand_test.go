package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// byHand does the work without vmnet: a persistent tap with ip(8), then the monitor.
func (l *lab) byHand() func(int) (time.Duration, error) {
	_, socket := l.guest("hand")
	return func(i int) (time.Duration, error) {
		tap := fmt.Sprintf("hand%d", i)
		start := time.Now()
		_, addErr := timed("ip", "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr")
		_, portErr := timed("ip", "link", "set", "dev", tap, "master", "br0", "up")
		err := errors.Join(addErr, portErr, monitor(socket,
			`{"execute": "qmp_capabilities"}`,
			fmt.Sprintf(
				`{"execute": "netdev_add", "arguments": {"type": "tap", "id": "n%d", "ifname": %q, "script": "no", "downscript": "no"}}`,
				i, tap),
			fmt.Sprintf(
				`{"execute": "device_add", "arguments": {"driver": "virtio-net-pci", "id": "d%d", "netdev": "n%d", "mac": "52:54:00:00:01:%02x"}}`,
				i, i, i)))
		return time.Since(start), err
	}
}

// monitor sends commands, each after the reply to the previous one.
func monitor(path string, commands ...string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	answers := bufio.NewScanner(conn)
	answers.Scan() // the greeting
	for _, c := range commands {
		if _, err := fmt.Fprintln(conn, c); err != nil {
			return err
		}
		if err := answered(answers); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
	}
	return nil
}

func answered(answers *bufio.Scanner) error {
	for answers.Scan() {
		var a struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(answers.Bytes(), &a); err != nil {
			return err
		}
		if a.Error != nil {
			return errors.New(a.Error.Desc)
		}
		if a.Return != nil { // otherwise it is an event
			return nil
		}
	}
	return errors.Join(answers.Err(), errors.New("no answer"))
}
