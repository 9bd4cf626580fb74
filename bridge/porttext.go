package bridge

import (
	"fmt"
	"strconv"
	"strings"
)

// String returns a compact form without spaces for interface aliases, such as
// "trunk:2-5,7;native:1;isolated". It is empty for the zero value.
func (cfg PortConfig) String() string {
	cfg = cfg.normal()
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

// ParsePortConfig parses what String returns. Its errors match ErrInvalid with errors.Is.
func ParsePortConfig(text string) (PortConfig, error) {
	var cfg PortConfig
	if text == "" {
		return cfg, nil
	}
	seen := map[string]bool{}
	for word := range strings.SplitSeq(text, ";") {
		key, value, _ := strings.Cut(word, ":")
		if seen[key] {
			return PortConfig{}, fmt.Errorf("%w port: %q: %s is given twice", ErrInvalid, text, key)
		}
		seen[key] = true
		if err := cfg.setWord(word, key, value); err != nil {
			return PortConfig{}, fmt.Errorf("%w port: %q: %w", ErrInvalid, text, err)
		}
	}
	return cfg.normal(), cfg.Validate()
}

func (cfg *PortConfig) setWord(word, key, value string) (err error) {
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

// ParseVLANs parses a list of VLANs and ranges, such as "2-5,7", or "all", and returns it sorted
// and merged. Its errors match ErrInvalid with errors.Is.
func ParseVLANs(list string) ([]VLANRange, error) {
	ranges, err := parseVLANs(list)
	if err != nil {
		return nil, fmt.Errorf("%w port: %w", ErrInvalid, err)
	}
	return ranges, nil
}

func parseVLANs(list string) ([]VLANRange, error) {
	if list == "all" {
		return []VLANRange{{1, maxVLAN}}, nil
	}
	var ranges []VLANRange
	for item := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		var r VLANRange
		var err error
		if r.First, err = parseVLAN(first); err != nil {
			return nil, err
		}
		if r.Last, err = parseVLAN(last); err != nil {
			return nil, err
		}
		if err := r.validate(); err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return merge(ranges), nil
}

func parseVLAN(s string) (int, error) {
	id, err := strconv.ParseUint(s, 10, 16)
	if err != nil || !validVLAN(int(id)) {
		return 0, fmt.Errorf("VLAN %q: want 1 to %d, in lists such as 2-5,7", s, maxVLAN)
	}
	return int(id), nil
}

// FormatVLANs returns the list that ParseVLANs parses, sorted and merged.
func FormatVLANs(ranges []VLANRange) string {
	var items []string
	for _, r := range merge(ranges) {
		item := strconv.Itoa(r.First)
		if r.Last != r.First {
			item += "-" + strconv.Itoa(r.Last)
		}
		items = append(items, item)
	}
	return strings.Join(items, ",")
}
