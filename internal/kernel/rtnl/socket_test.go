package rtnl

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// answer returns a struct nlmsgerr with the request and attributes.
func answer(flags uint16, errno int32, rest ...byte) syscall.NetlinkMessage {
	data := binary.NativeEndian.AppendUint32(nil, uint32(errno))
	return syscall.NetlinkMessage{
		Header: syscall.NlMsghdr{Type: unix.NLMSG_ERROR, Flags: flags},
		Data:   append(data, rest...),
	}
}

func TestAnswerError(t *testing.T) {
	header := append(binary.NativeEndian.AppendUint32(nil, 18), make([]byte, 12)...) // of a request of 18 bytes
	words := append([]byte{8, 0, 1, 0}, "no!\x00"...)
	for name, test := range map[string]struct {
		m    syscall.NetlinkMessage
		want string
	}{
		"success":       {answer(0, 0), ""},
		"end of a dump": {syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.NLMSG_DONE}}, ""},
		"errno":         {answer(0, -int32(unix.ENODEV)), "no such device"},
		"words": {answer(unix.NLM_F_ACK_TLVS, -int32(unix.EINVAL),
			append(append(append([]byte{}, header...), 0, 0, 0, 0), words...)...), "invalid argument: no!"},
		"capped": {answer(unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED, -int32(unix.EINVAL),
			append(append([]byte{}, header...), words...)...), "invalid argument: no!"},
		"cut": {answer(unix.NLM_F_ACK_TLVS, -int32(unix.EINVAL), header...), "invalid argument"},
		"cut words": {answer(unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED, -int32(unix.EINVAL),
			append(append([]byte{}, header...), words[:6]...)...), "invalid argument"},
		"long request": {answer(unix.NLM_F_ACK_TLVS, -int32(unix.EINVAL), 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0,
			0, 0, 0, 0), "invalid argument"},
	} {
		err := answerError(test.m)
		if got := errorText(err); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func FuzzAnswerError(f *testing.F) {
	f.Add(uint16(unix.NLM_F_ACK_TLVS), []byte("12345678901234567890"))
	f.Fuzz(func(t *testing.T, flags uint16, data []byte) {
		_ = answerError(syscall.NetlinkMessage{
			Header: syscall.NlMsghdr{Type: unix.NLMSG_ERROR, Flags: flags},
			Data:   data,
		})
	})
}

func TestSocket(t *testing.T) {
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	c, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := c.Link("lo")
		if err != nil || l.Name != "lo" {
			t.Fatalf("%+v, %v", l, err)
		}
		if links, err := c.Links("", 0); err != nil || len(links) == 0 {
			t.Errorf("%d links, %v", len(links), err)
		}
		if _, err := c.Link("no-such-link"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if _, err := c.Links(strings.Repeat("k", 200), 0); err != nil && !errors.Is(err, unix.EINVAL) &&
			!errors.Is(err, unix.ERANGE) {
			t.Error(err)
		}
	}
	c.Close()
	c.Close()
	if _, err := c.Link("lo"); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
}
