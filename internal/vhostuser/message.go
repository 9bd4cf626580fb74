package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/vhostuser/guestmem"
)

// A request is the type of a message (enum VhostUserRequest in hw/virtio/vhost-user.c of QEMU).
type request uint32

const (
	getFeatures         request = 1
	setFeatures         request = 2
	setOwner            request = 3
	resetOwner          request = 4
	setMemTable         request = 5
	setLogBase          request = 6
	setLogFD            request = 7
	setVringNum         request = 8
	setVringAddr        request = 9
	setVringBase        request = 10
	getVringBase        request = 11
	setVringKick        request = 12
	setVringCall        request = 13
	setVringErr         request = 14
	getProtocolFeatures request = 15
	setProtocolFeatures request = 16
	getQueueNum         request = 17
	setVringEnable      request = 18
	sendRARP            request = 19
	setMTU              request = 20
	getMaxMemSlots      request = 36
	addMemReg           request = 37
	remMemReg           request = 38
)

var requestNames = map[request]string{
	getFeatures: "GET_FEATURES", setFeatures: "SET_FEATURES", setOwner: "SET_OWNER", resetOwner: "RESET_OWNER",
	setMemTable: "SET_MEM_TABLE", setVringNum: "SET_VRING_NUM", setVringAddr: "SET_VRING_ADDR",
	setVringBase: "SET_VRING_BASE", getVringBase: "GET_VRING_BASE", setVringKick: "SET_VRING_KICK",
	setVringCall: "SET_VRING_CALL", setVringErr: "SET_VRING_ERR", getProtocolFeatures: "GET_PROTOCOL_FEATURES",
	setProtocolFeatures: "SET_PROTOCOL_FEATURES", getQueueNum: "GET_QUEUE_NUM", setVringEnable: "SET_VRING_ENABLE",
	setLogBase: "SET_LOG_BASE", setLogFD: "SET_LOG_FD", sendRARP: "SEND_RARP",
	setMTU: "NET_SET_MTU", getMaxMemSlots: "GET_MAX_MEM_SLOTS", addMemReg: "ADD_MEM_REG", remMemReg: "REM_MEM_REG",
}

func (r request) String() string {
	if name, ok := requestNames[r]; ok {
		return name
	}
	return fmt.Sprintf("request %d", uint32(r))
}

// Flags of a message.
const (
	versionMask = 3
	version     = 1
	isReply     = 4
	wantsReply  = 8
)

const (
	headerLen = 12 // of a message: request, flags, length of the body
	maxBody   = 4096
	maxFiles  = 8 // of a message (VHOST_MEMORY_BASELINE_NREGIONS)

	regionLen = 32
	noFile    = 1 << 8 // VHOST_USER_VRING_NOFD_MASK: the message has no file
)

// A message is what a frontend sends. Its files are open until close.
type message struct {
	request request
	flags   uint32
	body    []byte
	fds     []int
}

// A receiver receives messages into one buffer.
type receiver struct {
	conn *net.UnixConn
	head [headerLen]byte
	body [maxBody]byte
	oob  []byte
}

func newReceiver(conn *net.UnixConn) *receiver {
	return &receiver{conn: conn, oob: make([]byte, unix.CmsgSpace(4*maxFiles))}
}

// receive waits for a message, which is valid until the next call. The error is io.EOF if the
// frontend has closed its end between messages. Files come with a message's first byte.
func (r *receiver) receive() (m message, err error) {
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(r.head[:], r.oob)
	if err != nil {
		return m, err
	}
	if m.fds, err = fdpass.FDsIn(r.oob[:oobn]); err != nil {
		return m, err
	}
	switch {
	case n == 0:
		return m, io.EOF
	case flags&unix.MSG_CTRUNC != 0:
		return m, fmt.Errorf("a message with more than %d files", maxFiles)
	}
	if err := r.rest(r.head[n:]); err != nil {
		return m, err
	}
	m.request = request(binary.NativeEndian.Uint32(r.head[:]))
	m.flags = binary.NativeEndian.Uint32(r.head[4:])
	size := binary.NativeEndian.Uint32(r.head[8:])
	switch {
	case m.flags&versionMask != version || m.flags&isReply != 0:
		return m, fmt.Errorf("%v with flags %#x: want version %d, and no reply", m.request, m.flags, version)
	case size > maxBody:
		return m, fmt.Errorf("%v with %d bytes: want at most %d", m.request, size, maxBody)
	}
	m.body = r.body[:size]
	return m, r.rest(m.body)
}

// rest reads the rest of a message. The end of the connection is an error there.
func (r *receiver) rest(b []byte) error {
	_, err := io.ReadFull(r.conn, b)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// close closes the message's files.
func (m *message) close() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.fds = nil
}

// reply sends a reply to the message.
func (m *message) reply(conn *net.UnixConn, body []byte) error {
	b := binary.NativeEndian.AppendUint32(nil, uint32(m.request))
	b = binary.NativeEndian.AppendUint32(b, version|isReply)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(body)))
	_, err := conn.Write(append(b, body...))
	return err
}

func word(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }

// u64 returns the body of a message whose body is a number.
func (m *message) u64() (uint64, error) {
	if len(m.body) != 8 {
		return 0, fmt.Errorf("a body of %d bytes: want 8", len(m.body))
	}
	return binary.NativeEndian.Uint64(m.body), nil
}

// state returns the body of a message about a ring: its index and a number (struct
// vhost_vring_state in include/uapi/linux/vhost_types.h).
func (m *message) state() (index int, value uint32, err error) {
	if len(m.body) != 8 {
		return 0, 0, fmt.Errorf("a body of %d bytes: want 8", len(m.body))
	}
	return int(binary.NativeEndian.Uint32(m.body)), binary.NativeEndian.Uint32(m.body[4:]), nil
}

// vringAddr is struct vhost_vring_addr in include/uapi/linux/vhost_types.h.
type vringAddr struct {
	index, flags           uint32
	desc, used, avail, log uint64
}

// vringLogged is VHOST_VRING_F_LOG, the only flag.
const vringLogged = 1

func (m *message) addr() (a vringAddr, err error) {
	if len(m.body) != 40 {
		return a, fmt.Errorf("a body of %d bytes: want 40", len(m.body))
	}
	n := binary.NativeEndian
	return vringAddr{
		n.Uint32(m.body), n.Uint32(m.body[4:]),
		n.Uint64(m.body[8:]), n.Uint64(m.body[16:]), n.Uint64(m.body[24:]), n.Uint64(m.body[32:]),
	}, nil
}

// log returns the size and the offset in the message's file of a log (VhostUserLog).
func (m *message) log() (size, offset uint64, err error) {
	if len(m.body) != 16 || len(m.fds) != 1 {
		return 0, 0, fmt.Errorf("a body of %d bytes, with %d files: want 16, with 1", len(m.body), len(m.fds))
	}
	return binary.NativeEndian.Uint64(m.body), binary.NativeEndian.Uint64(m.body[8:]), nil
}

// ringFile returns the ring's index and its file, whose ownership passes to the caller, or -1 if it
// has none.
func (m *message) ringFile() (index, fd int, err error) {
	v, err := m.u64()
	if err != nil {
		return 0, -1, err
	}
	want := 1
	if v&noFile != 0 {
		want = 0
	}
	if len(m.fds) != want {
		return 0, -1, fmt.Errorf("%d files: want %d", len(m.fds), want)
	}
	if index, fd = int(v&0xff), -1; want == 1 {
		fd, m.fds = m.fds[0], nil
	}
	return index, fd, nil
}

// regions returns the regions of a table, one for each of the message's files.
func (m *message) regions() ([]guestmem.Region, error) {
	if len(m.body) < 8 {
		return nil, fmt.Errorf("a body of %d bytes: want at least 8", len(m.body))
	}
	n := int(min(binary.NativeEndian.Uint32(m.body), maxFiles+1))
	if n > maxFiles || len(m.body) < 8+n*regionLen || n != len(m.fds) {
		return nil, fmt.Errorf("%d regions in %d bytes, with %d files: want up to %d, each with a file",
			n, len(m.body), len(m.fds), maxFiles)
	}
	all := make([]guestmem.Region, n)
	for i := range all {
		all[i] = regionIn(m.body[8+i*regionLen:])
	}
	return all, nil
}

// region returns the only region of a message.
func (m *message) region() (guestmem.Region, error) {
	if len(m.body) != 8+regionLen {
		return guestmem.Region{}, fmt.Errorf("a body of %d bytes: want %d", len(m.body), 8+regionLen)
	}
	return regionIn(m.body[8:]), nil
}

// regionIn parses VhostUserMemoryRegion.
func regionIn(b []byte) guestmem.Region {
	n := binary.NativeEndian
	return guestmem.Region{Guest: n.Uint64(b), Size: n.Uint64(b[8:]), User: n.Uint64(b[16:]), Offset: n.Uint64(b[24:])}
}

var errUnknown = errors.New("unknown request")
