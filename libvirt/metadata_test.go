package libvirt

import (
	"errors"
	"strings"
	"testing"
	"time"
)

const testURI = "urn:vmnet:nics:1"

func TestMetadataCalls(t *testing.T) {
	c, f := dialFake(t)
	want := func(m message, text string, hasText bool) {
		d := decoder{buf: m.payload}
		dom, kind := d.domain(), d.int32()
		if has := d.present(); has != hasText {
			t.Errorf("text: %v", has)
		}
		if hasText && d.string() != text {
			t.Errorf("want %s", text)
		}
		prefix, uri, affect := d.optionalString(), d.optionalString(), Affect(d.uint32())
		if dom != guest || kind != 2 || prefix != "vmnet" || uri != testURI || affect != AffectConfig ||
			d.end() != nil {
			t.Errorf("%+v, %d, %s, %s, %d, %v", dom, kind, prefix, uri, affect, d.end())
		}
	}
	go func() {
		m := f.expect(domainSetMetadata)
		want(m, "<nics/>", true)
		f.reply(m, nil)
		m = f.expect(domainSetMetadata)
		want(m, "", false)
		f.refuse(m, codeOperationInvalid, "not now")
		f.reply(f.expect(domainGetMetadata), func(e *encoder) { e.string("<nics/>") })
		f.refuse(f.expect(domainGetMetadata), codeNoMetadata, "none")
	}()
	ctx := within(t, 20*time.Second)
	if err := c.SetMetadata(ctx, guest, "vmnet", testURI, "<nics/>", AffectConfig); err != nil {
		t.Error(err)
	}
	if err := c.SetMetadata(ctx, guest, "vmnet", testURI, "", AffectConfig); !errors.Is(err, ErrOperationInvalid) {
		t.Error(err)
	}
	if text, err := c.Metadata(ctx, guest, testURI, AffectCurrent); err != nil || text != "<nics/>" {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := c.Metadata(ctx, guest, testURI, AffectCurrent); !errors.Is(err, ErrNoMetadata) {
		t.Error(err)
	}
}

// metadata uses virsh and this package in turn.
func (l *live) metadata(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 30*time.Second)
	if _, err := c.Metadata(ctx, dom, testURI, AffectConfig); !errors.Is(err, ErrNoMetadata) {
		t.Error(err)
	}
	const nics = `<nics><nic id="net0" vlan="1&amp;0"/></nics>`
	if err := c.SetMetadata(ctx, dom, "vmnet", testURI, nics, AffectConfig); err != nil {
		t.Fatal(err)
	}
	text, err := c.Metadata(ctx, dom, testURI, AffectConfig)
	if virsh := l.daemon.Virsh("metadata", "standing", testURI, "--config"); err != nil ||
		strings.TrimSpace(text) != virsh || squeeze(text) != nics {
		t.Errorf("%v: %s\nvirsh: %s", err, text, virsh)
	}
	l.daemon.Virsh("metadata", "standing", "urn:other", "--key", "o", "--set", "<other/>", "--config")
	const want = `<vmnet:nics xmlns:vmnet="urn:vmnet:nics:1"><vmnet:nic id="net0" vlan="1&amp;0"/></vmnet:nics>`
	if got, ok := l.definition(t, c, dom, XMLInactive).Metadata(testURI); !ok || squeeze(got) != want {
		t.Errorf("%v: %s\nwant %s", ok, got, want)
	}
	if err := c.SetMetadata(ctx, dom, "vmnet", testURI, want, AffectConfig); err == nil {
		t.Error("libvirt took a prefix that it was to declare itself")
	}
	if err := c.SetMetadata(ctx, dom, "vmnet", testURI, "", AffectConfig); err != nil {
		t.Error(err)
	}
	if text, err := c.Metadata(ctx, dom, testURI, AffectConfig); !errors.Is(err, ErrNoMetadata) {
		t.Errorf("%s, %v", text, err)
	}
	if got, ok := l.definition(t, c, dom, XMLInactive).Metadata("urn:other"); !ok ||
		got != `<o:other xmlns:o="urn:other"/>` {
		t.Errorf("%v: %s", ok, got)
	}
}

// squeeze removes the white space that libvirt adds to XML.
func squeeze(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimSpace(line))
	}
	return b.String()
}
