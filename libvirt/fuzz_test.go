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

// FuzzDecode feeds bytes to all that decodes payloads. Nothing may panic, and nothing may
// allocate more than a multiple of what came.
func FuzzDecode(f *testing.F) {
	e := encoder{}
	e.uint32(1)
	e.domain(guest)
	e.uint32(1)
	f.Add(e.buf)
	e = encoder{}
	errorPayload(codeNoDomain, "Domain not found")(&e)
	f.Add(e.buf)
	e = encoder{}
	e.uint32(1)
	e.string("vnet0")
	e.present(true)
	e.string("02:00:00:00:00:01")
	e.uint32(1)
	e.int32(0)
	e.string("192.0.2.1")
	e.uint32(24)
	f.Add(e.buf)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	var domains []Domain
	var interfaces []InterfaceAddresses
	decoders := []func(*decoder){
		func(d *decoder) { d.domain() },
		func(d *decoder) { d.string() },
		func(d *decoder) { d.hyper() },
		func(d *decoder) {
			for range d.count(maxList, 24) {
				domains = append(domains, d.domain())
			}
		},
		func(d *decoder) {
			for range d.count(maxAddrs, 12) {
				interfaces = append(interfaces, d.interfaceAddresses())
			}
		},
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		allowed := uint64(64<<10 + 100*len(payload))
		domains, interfaces = nil, nil
		used := allocated(func() {
			for _, decode := range decoders {
				m := message{payload: payload}
				_ = m.decode("fuzz", decode)
			}
			_ = decodeError("fuzz", payload)
			for _, kind := range []Kind{Lifecycle, DeviceRemoved, MetadataChange, Monitor} {
				_, _, _ = decodeEvent(kind, payload)
			}
		})
		if used > allowed || len(domains) > maxList || len(interfaces) > maxAddrs {
			t.Errorf("%d bytes allocated for %d: %d domains, %d interfaces", used, len(payload), len(domains), len(interfaces))
		}
		d := decoder{buf: payload}
		if dom := d.domain(); d.end() == nil && !strings.Contains(dom.Name, "\x00") {
			e := encoder{}
			e.domain(dom)
			if e.err != nil || len(e.buf) != len(payload) {
				t.Errorf("%x was decoded to %+v and encoded to %x, %v", payload, dom, e.buf, e.err)
			}
		}
	})
}

// allocated is how many bytes f allocates. Fuzzing's own goroutines add some.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// stream is a source whose files all are /dev/null.
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
		packet, err := encode(h, 0, func(e *encoder) { e.domain(guest) })
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
		f.Add(append(packet, packet...))
	}
	packet, err := encode(header{qemuProgram, 1, 7, typeReplyWithFiles, 3, statusOK}, 2, func(e *encoder) { e.string("x") })
	if err != nil {
		f.Fatal(err)
	}
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

// FuzzDefinition reads XML; what is read well is bounded and its NICs can be named in XML again.
func FuzzDefinition(f *testing.F) {
	f.Add(definitionXML)
	f.Add(`<domain><name>x</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid></domain>`)
	f.Add(`<!DOCTYPE x [<!ENTITY a "b">]><domain><name>&a;</name></domain>`)
	f.Fuzz(func(t *testing.T, text string) {
		def, err := ParseDefinition(text)
		if (def == nil) != (err != nil) {
			t.Fatalf("%+v, %v", def, err)
		}
		if def == nil {
			return
		}
		for _, nic := range def.Interfaces {
			if nic.Queues < 0 || nic.MTU < 0 || nic.Address != "" && len(nic.Address) != len("0000:00:00.0") {
				t.Errorf("%+v", nic)
			}
			x, err := Ethernet{Tap: nic.Target, MAC: nic.MAC, LinkDown: nic.LinkDown, Model: nic.Model, Driver: nic.Driver, Queues: nic.Queues, MTU: nic.MTU, Alias: nic.Alias}.XML()
			if err != nil {
				continue
			}
			again, err := ParseDefinition(strings.Replace(domainAround, "NIC", x, 1))
			if err != nil || len(again.Interfaces) != 1 || again.Interfaces[0].Target != nic.Target || again.Interfaces[0].Alias != nic.Alias {
				t.Errorf("%+v became %s: %+v, %v", nic, x, again, err)
			}
		}
	})
}

// FuzzEthernet writes elements that mean what they were made of.
func FuzzEthernet(f *testing.F) {
	f.Add("tap0", []byte{2, 0, 0, 0, 0, 1}, "virtio", "qemu", 4, 1500, "ua-vmnet-net0", true, false)
	f.Add("'/><x", []byte{1}, "a b", "", -1, 1<<20, "ua-\"", false, true)
	f.Fuzz(func(t *testing.T, tap string, mac []byte, model, driver string, queues, mtu int, alias string, down, managed bool) {
		n := Ethernet{tap, managed, mac, down, model, driver, queues, mtu, alias}
		x, err := n.XML()
		if err != nil {
			return
		}
		def, err := ParseDefinition(strings.Replace(domainAround, "NIC", x, 1))
		if err != nil || len(def.Interfaces) != 1 {
			t.Fatalf("%s: %+v, %v", x, def, err)
		}
		got := def.Interfaces[0]
		if got.Target != tap || got.MAC.String() != n.MAC.String() || model != "" && got.Model != model || got.MTU != mtu ||
			got.Alias != alias || queues > 1 && got.Queues != queues || got.Driver != driver || got.LinkDown != down || got.Unmanaged == managed {
			t.Errorf("%+v became %s, which is %+v", n, x, got)
		}
	})
}
