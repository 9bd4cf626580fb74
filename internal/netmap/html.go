package netmap

import (
	_ "embed"
	"html/template"
	"strings"
	"time"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// HTML returns a page with the drawing and a table of all ends, which can be searched. It needs
// nothing else, and its script gets no data. host and now say where and when it was made.
func (m *Map) HTML(host string, now time.Time) (string, error) {
	var b strings.Builder
	err := page.Execute(&b, map[string]any{
		"Host": host, "Time": now.Format(time.RFC3339), "Places": m.Places,
		"SVG": template.HTML(m.SVG()), // escaped where it was written
	})
	return b.String(), err
}
