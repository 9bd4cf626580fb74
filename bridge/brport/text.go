package brport

import (
	"fmt"
	"strconv"
	"strings"
)

// String returns a compact form without spaces for interface aliases, such as
// "trunk:2-5,7;native:1;isolated". It is empty for the zero value.
func (cfg Settings) String() string {
	cfg = cfg.Normal()
	var words []string
	add := func(ok bool, word string) {
		if ok {
			words = append(words, word)
		}
	}
	add(cfg.VLAN != 0, "vlan:"+strconv.Itoa(cfg.VLAN))
	add(len(cfg.Trunk) > 0, "trunk:"+FormatVLANs(cfg.Trunk))
	add(cfg.Native != 0, "native:"+strconv.Itoa(cfg.Native))
	add(cfg.Isolated, "isolated")
	add(cfg.Hairpin, "hairpin")
	add(cfg.NoLearning, "nolearn")
	add(cfg.NoFlood, "noflood")
	add(cfg.Forward != 0, "forward:"+cfg.Forward.String())
	add(cfg.Other != "", cfg.Other)
	return strings.Join(words, ";")
}

// Parse parses what String returns, except Other. Its errors match ErrInvalid with errors.Is.
func Parse(text string) (Settings, error) {
	var cfg Settings
	if text == "" {
		return cfg, nil
	}
	seen := map[string]bool{}
	for word := range strings.SplitSeq(text, ";") {
		key, value, _ := strings.Cut(word, ":")
		if seen[key] {
			return Settings{}, fmt.Errorf("%w port: %q: %s is given twice", ErrInvalid, text, key)
		}
		seen[key] = true
		if err := cfg.setWord(word, key, value); err != nil {
			return Settings{}, fmt.Errorf("%w port: %q: %w", ErrInvalid, text, err)
		}
	}
	return cfg.Normal(), cfg.Validate()
}

func (cfg *Settings) setWord(word, key, value string) (err error) {
	switch key {
	case "vlan":
		cfg.VLAN, err = parseVLAN(value)
		return err
	case "native":
		cfg.Native, err = parseVLAN(value)
		return err
	case "trunk":
		cfg.Trunk, err = parseVLANs(value)
		return err
	case "forward":
		cfg.Forward, err = ParseProtocols(value)
		return err
	}
	switch word {
	case "isolated":
		cfg.Isolated = true
	case "hairpin":
		cfg.Hairpin = true
	case "nolearn":
		cfg.NoLearning = true
	case "noflood":
		cfg.NoFlood = true
	default:
		return fmt.Errorf("%q is not a setting of a port", word)
	}
	return nil
}
