package domainxml

import (
	"encoding/xml"
	"fmt"
	"strings"
	"testing"
)

const testURI = "urn:vmnet:nics:1"

// inMetadata returns a domain with that metadata and attributes of <domain> and <metadata>.
func inMetadata(domain, meta, elements string) string {
	return fmt.Sprintf(
		"<domain %s><name>x</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><metadata %s>\n%s\n</metadata></domain>",
		domain, meta, elements)
}

func TestDefinitionMetadata(t *testing.T) {
	const other = `<o:info xmlns:o="urn:other"><o:a/></o:info><!-- between -->text`
	for name, test := range map[string]struct{ text, want string }{
		"its own prefix": {
			inMetadata("", "", other+`<v:nics xmlns:v="urn:vmnet:nics:1"><v:nic id='a'/></v:nics>`+other),
			`<v:nics xmlns:v="urn:vmnet:nics:1"><v:nic id='a'/></v:nics>`,
		},
		"the default namespace": {
			inMetadata("", "", `<nics xmlns="urn:vmnet:nics:1"/>`),
			`<nics xmlns="urn:vmnet:nics:1"/>`,
		},
		"declared further out": {
			inMetadata(`xmlns:v="urn:vmnet:nics:1" xmlns:a='x&quot;&lt;'`, `xmlns:a="near" xmlns="default" id="1"`,
				`<v:nics xmlns:b="c" a="1"><x/></v:nics>`),
			`<v:nics xmlns:a="near" xmlns="default" xmlns:v="urn:vmnet:nics:1" xmlns:b="c" a="1"><x/></v:nics>`,
		},
		"escaped": {
			inMetadata(`xmlns:a='x"&lt;'`, "", "<v:n\n\txmlns:v=\"urn:vmnet:nics:1\"\n/>"),
			"<v:n xmlns:a=\"x&#34;&lt;\"\n\txmlns:v=\"urn:vmnet:nics:1\"\n/>",
		},
		"the first of two": {
			inMetadata(`xmlns:v="urn:vmnet:nics:1"`, "", `<v:a/><v:b/>`),
			`<v:a xmlns:v="urn:vmnet:nics:1"/>`,
		},
		"declared nowhere": {inMetadata("", "", `<v:nics/>`), ""},
		"the prefix alone": {inMetadata("", "", `<v:nics xmlns:v="urn:vmnet:nics:2"/>`), ""},
		"further in":       {inMetadata("", "", `<x><v:nics xmlns:v="urn:vmnet:nics:1"/></x>`), ""},
		"a comment": {inMetadata("", "",
			`<!-- <v:nics xmlns:v="urn:vmnet:nics:1"/> --><![CDATA[<v:nics xmlns:v="urn:vmnet:nics:1"/>]]>`), ""},
		"no metadata": {definitionXML, ""},
		"another place's": {strings.Replace(domainAround, "NIC",
			`<metadata><v:nics xmlns:v="urn:vmnet:nics:1"/></metadata>`, 1), ""},
		"without a namespace": {inMetadata("", "", `<nics/>`), ""},
		"bytes of two letters": {
			inMetadata("", "", `<ä>ö</ä><n xmlns="urn:vmnet:nics:1">é</n>`),
			`<n xmlns="urn:vmnet:nics:1">é</n>`,
		},
	} {
		def, err := Parse(test.text)
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
	if _, err := Parse(inMetadata("", "", strings.Repeat("<a/>", maxMetadata+1))); err == nil {
		t.Error("more than libvirt keeps")
	}
}

// FuzzMetadata extracts elements, which must have the same meaning alone as inside the domain.
func FuzzMetadata(f *testing.F) {
	f.Add("", "", `<v:nics xmlns:v="urn:vmnet:nics:1"><v:nic id='a'/></v:nics>`)
	f.Add(`xmlns:v="urn:vmnet:nics:1" xmlns:a='x&quot;&lt;'`, `xmlns:a="near" xmlns="default"`,
		`<v:nics xmlns:b="c"><x/></v:nics>`)
	f.Add(`xmlns='urn:vmnet:nics:1'`, "", "<a\n/><b>&lt;</b>")
	f.Fuzz(func(t *testing.T, domain, meta, elements string) {
		text := inMetadata(domain, meta, elements)
		def, err := Parse(text)
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

// anyXML is any element, as far as encoding/xml distinguishes elements.
type anyXML struct {
	XMLName xml.Name
	Text    string   `xml:",chardata"`
	All     []anyXML `xml:",any"`
}

func (x anyXML) String() string {
	return fmt.Sprintf("{%s}%s(%q)%v", x.XMLName.Space, x.XMLName.Local, x.Text, x.All)
}
