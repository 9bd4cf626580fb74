package vtap

import (
	"net"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}
	for want, change := range map[string]func(*Config){
		"want macvtap or ipvtap": func(c *Config) { c.Kind = "tap" },
		`mode "l2"`:              func(c *Config) { c.Mode = "l2" },
		"mode passthru":          func(c *Config) { c.NoPromisc = true },
		"mode source":            func(c *Config) { c.Sources = []net.HardwareAddr{mac} },
		"needs source addresses": func(c *Config) { c.Mode = "source" },
		`flag "vepa"`:            func(c *Config) { c.Flag = "vepa" },
		"needs an IP address":    func(c *Config) { c.Kind, c.Mode, c.MAC = IPVtap, "l2", nil },
		"could only send":        func(c *Config) { c.Kind, c.Mode, c.MAC = IPVtap, "l3s", nil },
		"it uses its parent":     func(c *Config) { c.Kind, c.Mode = IPVtap, "l2" },
	} {
		cfg := Config{Kind: Macvtap, Name: "x", Mode: "bridge", MAC: mac}
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
