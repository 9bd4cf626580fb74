package nicflags

import (
	"github.com/spf13/pflag"

	"vmnet/bridge/portrate"
)

// AddRates adds the flags for rates.
func AddRates(fs *pflag.FlagSet, p *portrate.Config) {
	rate := func(to *portrate.Limit, name, usage string) {
		fs.Var(Value("RATE", none, func(s string) (err error) {
			*to, err = portrate.ParseLimit(s)
			return err
		}), name, usage)
	}
	rate(&p.Up, "rate-up", "how much the guest may send: bits per second (100M, 2.5G), packets per second (20kpps), "+
		"or both (100M,20kpps)")
	rate(&p.Down, "rate-down", "how much the guest may receive, in the same words")
	fs.Var(Value("BYTES", "", func(s string) (err error) {
		p.Burst, err = portrate.ParseBurst(s)
		return err
	}), "burst", "with --rate-up or --rate-down: what may pass at once after an idle time, such as 256k "+
		"(default 250 ms of the rate, at least 128k)")
}

// AddShape adds the flag for shaping, which a switch does not do.
func AddShape(fs *pflag.FlagSet, p *portrate.Config) {
	fs.BoolVar(&p.Shape, "shape", false,
		"with --rate-up or --rate-down: frames over a rate in bits wait in both directions, and are not dropped at once")
}

func (w *words) rates(c portrate.Config) {
	if !c.Up.IsZero() {
		w.add("rate-up", c.Up.String())
	}
	if !c.Down.IsZero() {
		w.add("rate-down", c.Down.String())
	}
	if c.Burst != 0 {
		w.add("burst", portrate.FormatBurst(c.Burst))
	}
	w.on("shape", c.Shape)
}
