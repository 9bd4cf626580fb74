package top

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gdamore/tcell/v2"
)

// A Screen shows rows until the user or a context ends it.
type Screen struct {
	Read     func(context.Context) (Reading, error)
	Interval time.Duration
	SortBy   string
	Filter   string

	old, now Reading
	err      error // of the last reading
	typing   bool  // a filter is being typed
	first    int   // row that is shown
}

// Run shows the screen on a terminal. It returns nil once the user has ended it.
func (s *Screen) Run(ctx context.Context) error {
	t, err := tcell.NewScreen()
	if err != nil {
		return fmt.Errorf("the terminal cannot be used: %w (-n 1 prints once)", err)
	}
	return s.run(ctx, t)
}

func (s *Screen) run(ctx context.Context, t tcell.Screen) error {
	if err := t.Init(); err != nil {
		return fmt.Errorf("the terminal cannot be used: %w (-n 1 prints once)", err)
	}
	events, quit := make(chan tcell.Event), make(chan struct{})
	done := make(chan struct{})
	go func() { defer close(done); t.ChannelEvents(events, quit) }()
	defer func() {
		close(quit)
		t.Fini() // it makes ChannelEvents return
		for range events {
		}
		<-done
	}()
	s.read(ctx)
	ticker := time.NewTicker(s.Interval)
	defer ticker.Stop()
	for {
		s.draw(t)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			s.read(ctx)
		case e, ok := <-events:
			switch e := e.(type) {
			case *tcell.EventKey:
				if s.key(e) {
					return nil
				}
			case *tcell.EventResize:
				t.Sync()
			}
			if !ok {
				return nil // the terminal has gone
			}
		}
	}
}

func (s *Screen) read(ctx context.Context) {
	r, err := s.Read(ctx)
	if s.err = err; err == nil {
		s.old, s.now = s.now, r
	}
}

// key does what a key stands for, and reports whether it ends the screen.
func (s *Screen) key(e *tcell.EventKey) (end bool) {
	switch {
	case e.Key() == tcell.KeyCtrlC:
		return true
	case s.typing:
		s.typed(e)
		return false
	}
	switch e.Key() {
	case tcell.KeyUp:
		s.first--
	case tcell.KeyDown:
		s.first++
	case tcell.KeyPgUp:
		s.first -= 10
	case tcell.KeyPgDn:
		s.first += 10
	case tcell.KeyHome:
		s.first = 0
	case tcell.KeyEscape:
		s.Filter = ""
	case tcell.KeyRune:
		switch e.Rune() {
		case 'q':
			return true
		case 's':
			s.SortBy = Keys[(slices.Index(Keys, s.SortBy)+1)%len(Keys)]
		case '/':
			s.typing, s.Filter = true, ""
		}
	}
	return false
}

// typed adds a key to the filter.
func (s *Screen) typed(e *tcell.EventKey) {
	const most = 64
	text := []rune(s.Filter)
	switch e.Key() {
	case tcell.KeyEnter:
		s.typing = false
	case tcell.KeyEscape:
		s.typing, s.Filter = false, ""
	case tcell.KeyBackspace, tcell.KeyBackspace2:
		s.Filter = string(text[:max(0, len(text)-1)])
	case tcell.KeyRune:
		if len(text) < most {
			s.Filter += string(e.Rune())
		}
	}
}

// lines returns what the screen shows in a width and height.
func (s *Screen) lines(width, height int) (all []string) {
	rows := Filter(Rows(s.old, s.now), s.Filter)
	Sort(rows, s.SortBy)
	room := max(0, height-3)
	s.first = max(0, min(s.first, len(rows)-room))
	status := fmt.Sprintf("%d of %d NICs, by %s, every %v", len(rows), len(s.now.NICs), s.SortBy, s.Interval)
	if s.Filter != "" || s.typing {
		status += "  filter: " + s.Filter
	}
	if s.typing {
		status += "_"
	}
	if s.err != nil {
		status = "cannot be read: " + s.err.Error()
	}
	all = append(all, status, Header(width))
	for _, r := range rows[s.first:min(len(rows), s.first+room)] {
		all = append(all, r.Line(width))
	}
	for len(all) < height-1 {
		all = append(all, "")
	}
	return append(all, "q quit  s sort  / filter  arrows scroll")
}

func (s *Screen) draw(t tcell.Screen) {
	width, height := t.Size()
	t.Clear()
	for y, text := range s.lines(width, height) {
		style := tcell.StyleDefault
		if y == 1 {
			style = style.Reverse(true)
			text = fixed(text, width)
		}
		x := 0
		for _, r := range fixed(text, width) {
			t.SetContent(x, y, r, nil, style)
			x++
		}
	}
	t.Show()
}
