package policy

import (
	"fmt"

	"github.com/goccy/go-yaml/ast"

	"vmnet/bridge/portrate"
	"vmnet/internal/strictyaml"
)

// shapes are the words of the key shape, the usual one first.
var shapes = []string{"allow", shapeRequire, shapeDeny}

const (
	shapeRequire = "require"
	shapeDeny    = "deny"
)

// checkShape decides about shaping, for which the host makes a device of its own for each NIC.
func (r *rule) checkShape(q *Request) *objection {
	switch {
	case r.shape == shapeDeny && q.Rates.Shape:
		return &objection{"shape", "shaping may not be asked for", "ask without --shape, or write shape: allow"}
	case r.shape == shapeRequire && !q.Rates.Shape:
		return &objection{
			"shape", "shaping must be asked for", "ask with --shape, which QEMU's bridge helper and scripts cannot",
		}
	}
	return nil
}

// rate parses the highest rate of one direction.
func (d *decoder) rate(n ast.Node, key string) (portrate.Limit, error) {
	text, err := d.Text(n, key)
	if err != nil {
		return portrate.Limit{}, err
	}
	l, err := portrate.ParseLimit(text)
	if err == nil && l.IsZero() {
		err = fmt.Errorf("%q limits nothing (remove %s)", text, key)
	}
	if err != nil {
		return l, d.Errorf(strictyaml.TokenOf(n), "%s: %v", key, err)
	}
	return l, nil
}

// checkRates demands that a limit is asked for: a NIC without one would have any rate. The burst
// may not be more than that of the highest rate.
func (r *rule) checkRates(q *Request) *objection {
	most := portrate.Config{Up: r.maxUp, Down: r.maxDown}
	for _, c := range []struct {
		key, flag   string
		asked, most portrate.Limit
		burst       uint64
	}{
		{"max-rate-up", "--rate-up", q.Rates.Up, most.Up, most.UpBucket().Burst},
		{"max-rate-down", "--rate-down", q.Rates.Down, most.Down, most.DownBucket().Burst},
	} {
		within := c.asked.Within(c.most)
		switch {
		case c.asked.IsZero() && !within.IsZero():
			return &objection{
				c.key, fmt.Sprintf("a rate of at most %s must be asked for", c.most),
				fmt.Sprintf("ask with %s %s, which QEMU's bridge helper and scripts cannot", c.flag, within),
			}
		case c.asked != within:
			return &objection{
				c.key, fmt.Sprintf("a rate of %s is more than %s", c.asked, c.most),
				fmt.Sprintf("ask with %s %s", c.flag, within),
			}
		case c.burst != 0 && q.Rates.Burst > c.burst:
			return &objection{
				c.key, fmt.Sprintf("a burst of %s is more than %s, that of %s", portrate.FormatBurst(q.Rates.Burst),
					portrate.FormatBurst(c.burst), c.most), "ask without --burst",
			}
		}
	}
	return nil
}
