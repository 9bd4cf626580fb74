package libvirt

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
)

// FuzzDecode passes bytes to all decoders of payloads. None may panic, and none may allocate more
// than a multiple of its input.
func FuzzDecode(f *testing.F) {
	e := encoder{}
	e.uint32(1)
	e.domain(guest)
	e.uint32(1)
	f.Add(e.buf)
	e = encoder{}
	errorPayload(codeNoDomain, "Domain not found")(&e)
	f.Add(e.buf)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, payload []byte) {
		allowed := uint64(64<<10 + 100*len(payload))
		used := allocated(func() {
			for _, p := range procedures {
				for _, s := range []status{statusOK, statusError} {
					m := message{header: header{status: s}, payload: payload}
					_ = m.decode(p.name, p.result)
				}
			}
			for _, kind := range []Kind{Lifecycle, DeviceRemoved, MetadataChange, Monitor} {
				_, _, _ = decodeEvent(kind, payload)
			}
		})
		if used > allowed {
			t.Errorf("%d bytes allocated for %d", used, len(payload))
		}
		d := decoder{buf: payload}
		if dom := d.domain(); d.end() == nil && !strings.Contains(dom.Name, "\x00") {
			e := encoder{}
			e.domain(dom)
			if len(e.buf) != len(payload) {
				t.Errorf("%x was decoded to %+v and encoded to %x", payload, dom, e.buf)
			}
		}
	})
}

// procedures are all procedures that the client calls.
var procedures = []procedure{
	authList, authAskPolkit, connectOpen, connectClose, connectListAllDomains, domainLookupByName, domainLookupByUUID,
	domainGetXMLDesc, domainIsPersistent, domainGetState, domainAttachDeviceFlags, domainUpdateDeviceFlags,
	domainDetachDeviceAlias, domainSetMetadata, domainGetMetadata, domainMonitorCommand,
	domainMonitorCommandWithFiles, connectDomainEventCallbackRegisterAny,
	connectDomainEventCallbackDeregisterAny, connectDomainMonitorEventRegister, connectDomainMonitorEventDeregister,
}

// allocated returns how many bytes f allocates. The fuzzer's own goroutines add some.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// stream is a source whose files are all /dev/null.
type stream struct{ *bytes.Reader }

func (s stream) readFile() (*os.File, error) {
	if _, err := s.ReadByte(); err != nil {
		return nil, err
	}
	return os.Open(os.DevNull)
}

// FuzzPacket reads a stream to its end.
func FuzzPacket(f *testing.F) {
	for _, h := range []header{
		{remoteProgram, 1, 23, typeReply, 3, statusOK},
		{keepaliveProgram, 1, keepalivePing, typeMessage, 0, statusOK},
	} {
		packet := encode(h, 0, func(e *encoder) { e.domain(guest) })
		f.Add(packet)
		f.Add(append(packet, packet...))
	}
	packet := encode(header{qemuProgram, 1, 7, typeReplyWithFiles, 3, statusOK}, 2, func(e *encoder) { e.string("x") })
	f.Add(append(packet, 0, 0))
	f.Add([]byte{2, 0, 0, 4, 1, 2, 3})
	f.Fuzz(func(t *testing.T, text []byte) {
		used := allocated(func() {
			r := stream{bytes.NewReader(text)}
			for {
				m, err := readMessage(r)
				for _, file := range m.files {
					_ = file.Close()
				}
				if err == nil && len(m.files) > maxFiles {
					t.Errorf("%d files", len(m.files))
				}
				if err != nil {
					if !errors.Is(err, ErrProtocol) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Error(err)
					}
					return
				}
			}
		})
		if allowed := uint64(512<<10 + 100*len(text)); used > allowed {
			t.Errorf("%d bytes allocated for %d", used, len(text))
		}
	})
}
