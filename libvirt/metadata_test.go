package libvirt

import (
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

const testURI = "urn:vmnet:nics:1"

// inMetadata is a domain with that metadata; attributes are those of <domain> and <metadata>.
func inMetadata(domain, meta, elements string) string {
	return fmt.Sprintf("<domain %s><name>x</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><metadata %s>\n%s\n</metadata></domain>", domain, meta, elements)
}

func TestDefinitionMetadata(t *testing.T) {
	const other = `<o:info xmlns:o="urn:other"><o:a/></o:info><!-- between -->text`
	for name, test := range map[string]struct{ text, want string }{
		"its own prefix": {
			inMetadata("", "", other+`<v:nics xmlns:v="urn:vmnet:nics:1"><v:nic id='a'/></v:nics>`+other),
			`<v:nics xmlns:v="urn:vmnet:nics:1"><v:nic id='a'/></v:nics>`,
		},
		"the default namespace": {inMetadata("", "", `<nics xmlns="urn:vmnet:nics:1"/>`), `<nics xmlns="urn:vmnet:nics:1"/>`},
		"declared further out": {
			inMetadata(`xmlns:v="urn:vmnet:nics:1" xmlns:a='x&quot;&lt;'`, `xmlns:a="near" xmlns="default" id="1"`, `<v:nics xmlns:b="c" a="1"><x/></v:nics>`),
			`<v:nics xmlns:a="near" xmlns="default" xmlns:v="urn:vmnet:nics:1" xmlns:b="c" a="1"><x/></v:nics>`,
		},
		"escaped":              {inMetadata(`xmlns:a='x"&lt;'`, "", "<v:n\n\txmlns:v=\"urn:vmnet:nics:1\"\n/>"), "<v:n xmlns:a=\"x&#34;&lt;\"\n\txmlns:v=\"urn:vmnet:nics:1\"\n/>"},
		"the first of two":     {inMetadata(`xmlns:v="urn:vmnet:nics:1"`, "", `<v:a/><v:b/>`), `<v:a xmlns:v="urn:vmnet:nics:1"/>`},
		"declared nowhere":     {inMetadata("", "", `<v:nics/>`), ""},
		"the prefix alone":     {inMetadata("", "", `<v:nics xmlns:v="urn:vmnet:nics:2"/>`), ""},
		"further in":           {inMetadata("", "", `<x><v:nics xmlns:v="urn:vmnet:nics:1"/></x>`), ""},
		"a comment":            {inMetadata("", "", `<!-- <v:nics xmlns:v="urn:vmnet:nics:1"/> --><![CDATA[<v:nics xmlns:v="urn:vmnet:nics:1"/>]]>`), ""},
		"no metadata":          {definitionXML, ""},
		"another place's":      {strings.Replace(domainAround, "NIC", `<metadata><v:nics xmlns:v="urn:vmnet:nics:1"/></metadata>`, 1), ""},
		"without a namespace":  {inMetadata("", "", `<nics/>`), ""},
		"bytes of two letters": {inMetadata("", "", `<ä>ö</ä><n xmlns="urn:vmnet:nics:1">é</n>`), `<n xmlns="urn:vmnet:nics:1">é</n>`},
	} {
		def, err := ParseDefinition(test.text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, ok := def.Metadata(testURI); got != test.want || ok != (test.want != "") {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, ok, got, test.want)
		}
		if got, ok := def.Metadata(""); ok {
			t.Errorf("%s: %s has no namespace", name, got)
		}
	}
	if _, err := ParseDefinition(inMetadata("", "", strings.Repeat("<a/>", maxMetadata+1))); err == nil {
		t.Error("more than libvirt keeps")
	}
}

// FuzzMetadata takes out elements that mean alone what they meant in the domain.
func FuzzMetadata(f *testing.F) {
	f.Add("", "", `<v:nics xmlns:v="urn:vmnet:nics:1"><v:nic id='a'/></v:nics>`)
	f.Add(`xmlns:v="urn:vmnet:nics:1" xmlns:a='x&quot;&lt;'`, `xmlns:a="near" xmlns="default"`, `<v:nics xmlns:b="c"><x/></v:nics>`)
	f.Add(`xmlns='urn:vmnet:nics:1'`, "", "<a\n/><b>&lt;</b>")
	f.Fuzz(func(t *testing.T, domain, meta, elements string) {
		text := inMetadata(domain, meta, elements)
		def, err := ParseDefinition(text)
		if err != nil {
			return
		}
		got, ok := def.Metadata(testURI)
		if !ok {
			return
		}
		var whole struct {
			Metadata []struct {
				All []anyXML `xml:",any"`
			} `xml:"metadata"`
		}
		var alone anyXML
		if err := xml.Unmarshal([]byte(text), &whole); err != nil {
			t.Fatal(err)
		}
		if err := decodeXML(got, &alone); err != nil || len(got) > 8*len(text) {
			t.Fatalf("%s of\n%s: %v", got, text, err)
		}
		for _, m := range whole.Metadata {
			for _, want := range m.All {
				if want.XMLName.Space == testURI {
					if a, b := want.String(), alone.String(); a != b {
						t.Errorf("%s became %s", a, b)
					}
					return
				}
			}
		}
		t.Errorf("%s is not in\n%s", got, text)
	})
}

// anyXML is any element, as far as encoding/xml tells elements apart.
type anyXML struct {
	XMLName xml.Name
	Text    string   `xml:",chardata"`
	All     []anyXML `xml:",any"`
}

func (x anyXML) String() string {
	return fmt.Sprintf("{%s}%s(%q)%v", x.XMLName.Space, x.XMLName.Local, x.Text, x.All)
}

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
		if dom != guest || kind != 2 || prefix != "vmnet" || uri != testURI || affect != AffectConfig || d.end() != nil {
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

// metadata goes through virsh and ours, in turn.
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
	if virsh := l.daemon.Virsh("metadata", "standing", testURI, "--config"); err != nil || strings.TrimSpace(text) != virsh || squeeze(text) != nics {
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
	if got, ok := l.definition(t, c, dom, XMLInactive).Metadata("urn:other"); !ok || got != `<o:other xmlns:o="urn:other"/>` {
		t.Errorf("%v: %s", ok, got)
	}
}

// squeeze takes out what libvirt adds to make XML pretty.
func squeeze(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimSpace(line))
	}
	return b.String()
}
