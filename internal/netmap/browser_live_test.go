//go:build browser

package netmap

import (
	"context"
	"encoding/json"
	"html"
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
)

// browser opens a file in Chromium, without a display and without the network.
func browser(t *testing.T, file string, options ...string) string {
	t.Helper()
	program, err := exec.LookPath("chromium")
	nstest.Require(t, "browser", err == nil, "make browser-test installs it")
	ctx, cancel := context.WithTimeout(t.Context(), nstest.Patience(time.Minute))
	defer cancel()
	dir := t.TempDir()
	cmd := exec.CommandContext(ctx, program, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
		"--user-data-dir=" + dir, "--window-size=1100,900", "--virtual-time-budget=2000",
	}, append(options, "file://"+file)...)...)
	var stderr strings.Builder
	cmd.Stderr, cmd.WaitDelay, cmd.Dir = &stderr, 5*time.Second, dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	return string(out)
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// probe types into the page's search, as a person would, and writes down what is shown.
const probe = `<script>
const asked = (text, faultsOnly) => {
  search.value = text;
  search.dispatchEvent(new Event("input"));
  faults.checked = faultsOnly;
  faults.dispatchEvent(new Event("change"));
  return [...document.querySelectorAll("tbody tr")].filter(r => r.checkVisibility()).map(r => r.cells[2].textContent);
};
const box = document.querySelector("svg").getBoundingClientRect();
const result = {
  all: asked("", false), address: asked("10.0.0.2", false), words: asked("p4 SW0", false), none: asked("nobody", false),
  faults: asked("", true), count: document.getElementById("count").textContent,
  width: box.width, height: box.height, scripts: document.scripts.length, title: document.title,
};
const report = document.createElement("pre");
report.id = "report";
report.textContent = JSON.stringify(result);
document.body.append(report);
</script>`

// TestLivePageInABrowser: a browser draws the map, finds what one searches for, and runs no script
// of a guest's name.
func TestLivePageInABrowser(t *testing.T) {
	m := Build(example())
	text, err := m.HTML(hostile, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	dom := browser(t, write(t, "map.html", strings.Replace(text, "</body>", probe+"</body>", 1)), "--dump-dom")
	_, report, found := strings.Cut(dom, `<pre id="report">`)
	report, _, ended := strings.Cut(report, "</pre>")
	var got struct {
		All, Address, Words, None, Faults []string
		Count, Title                      string
		Width, Height                     float64
		Scripts                           int
	}
	if err := json.Unmarshal([]byte(html.UnescapeString(report)), &got); err != nil || !found || !ended {
		t.Fatalf("%v: %s", err, dom)
	}
	ends, faults := 0, 0
	for _, p := range m.Places {
		if p.Broken != "" {
			ends, faults = ends+1, faults+1
		}
		for _, e := range p.Ends {
			ends++
			if e.Broken != "" {
				faults++
			}
		}
	}
	if len(got.All) != ends || len(got.Faults) != faults || faults == 0 || len(got.None) != 0 {
		t.Errorf("%d of %d ends, %d of %d faults, %v", len(got.All), ends, len(got.Faults), faults, got.None)
	}
	for _, found := range [][]string{got.Address, got.Words} {
		if len(found) != 1 || !strings.HasPrefix(found[0], "P") {
			t.Errorf("found %q", found)
		}
	}
	const ours = 2 // the page's and the probe
	if got.Scripts != ours || got.Width < 800 || got.Height < 200 || !strings.Contains(got.Title, "<script>") {
		t.Errorf("%+v", got)
	}
}

// TestLiveDrawingInABrowser: a browser draws places, ends and broken connections in their colors,
// and so the README's map of the demo, which is in today's style.
func TestLiveDrawingInABrowser(t *testing.T) {
	readme, err := os.ReadFile("../../docs/map.svg")
	if err != nil || !strings.Contains(string(readme), svgStyle) {
		t.Errorf("docs/map.svg (made by: make demo MAP=docs/map.svg): %v", err)
	}
	place, end, fault := [3]uint8{0xe8, 0xf0, 0xfe}, [3]uint8{0xf8, 0xf9, 0xfa}, [3]uint8{0xc5, 0x22, 0x1f}
	for _, c := range []struct {
		name, svg string
		colors    [][3]uint8
	}{
		{"example", Build(example()).SVG(), [][3]uint8{place, end, fault}},
		{"docs/map.svg", string(readme), [][3]uint8{place, end}},
	} {
		picture := screenshot(t, c.svg)
		for _, color := range c.colors {
			if n := pixels(picture, color); n < 20 {
				t.Errorf("%s: %d pixels of %x", c.name, n, color)
			}
		}
	}
}

func screenshot(t *testing.T, svg string) image.Image {
	t.Helper()
	shot := filepath.Join(t.TempDir(), "map.png")
	browser(t, write(t, "map.svg", svg), "--screenshot="+shot)
	f, err := os.Open(shot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return picture
}

// pixels counts those of a color.
func pixels(picture image.Image, color [3]uint8) (n int) {
	size := picture.Bounds()
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			r, g, b, _ := picture.At(x, y).RGBA()
			if [3]uint8{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8)} == color {
				n++
			}
		}
	}
	return n
}
