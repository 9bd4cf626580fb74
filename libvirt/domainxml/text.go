package domainxml

import (
	"encoding/xml"
	"slices"
	"strings"
)

// InterfaceText returns the element of the interface with that alias as the definition has it, with
// what Interface leaves out, so that libvirt can get it back. It is empty if there is none.
func (d *Definition) InterfaceText(alias string) string {
	decoder := xml.NewDecoder(strings.NewReader(d.metadata.text))
	parents := []string{"domain", "devices", "interface"}
	path, depth := make([]string, len(parents)), 0 // of the elements that are open
	var begin int64
	isIt := false
	for {
		at := decoder.InputOffset()
		token, err := decoder.Token()
		if err != nil {
			return ""
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth < len(path) {
				path[depth] = t.Name.Local
			}
			depth++
			switch {
			case depth == len(parents):
				begin, isIt = at, false
			case depth == len(parents)+1 && t.Name.Local == "alias":
				isIt = isIt || slices.ContainsFunc(t.Attr, func(a xml.Attr) bool {
					return a.Name.Local == "name" && a.Value == alias
				})
			}
		case xml.EndElement:
			if depth == len(parents) && isIt && slices.Equal(path, parents) {
				return d.metadata.text[begin:decoder.InputOffset()]
			}
			depth--
		}
	}
}
