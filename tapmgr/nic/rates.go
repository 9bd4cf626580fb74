package nic

import "vmnet/bridge/portrate"

// encodeRates writes the rates' part of a record.
func encodeRates(c portrate.Config, add func(key, value string)) {
	if !c.Up.IsZero() {
		add("up", c.Up.String())
	}
	if !c.Down.IsZero() {
		add("down", c.Down.String())
	}
	if c.Burst != 0 {
		add("burst", portrate.FormatBurst(c.Burst))
	}
}

// setRate sets one field of a record, and reports whether encodeRates writes such a value. It
// ignores a key that is not a rate's.
func setRate(c *portrate.Config, key, value string) bool {
	var err error
	switch key {
	case "up":
		c.Up, err = portrate.ParseLimit(value)
	case "down":
		c.Down, err = portrate.ParseLimit(value)
	case "burst":
		c.Burst, err = portrate.ParseBurst(value)
	}
	return err == nil
}
