package vport

import (
	"fmt"
	"strconv"
	"strings"
)

// NoLimit stands for any number of frames or addresses.
const NoLimit = -1

// The most that Limits may be; the switch itself takes more.
const (
	MostStorm     = 10_000_000
	MostAddresses = 65536
)

// Limits are those of a guest's port that the guest's NIC keeps in its alias: 0 for the defaults.
type Limits struct {
	LockMAC      bool
	Storm        int
	MaxAddresses int
}

// Encode writes the limits' part of an alias.
func (g Limits) Encode(add func(key, value string)) {
	if g.LockMAC {
		add("lock", "on")
	}
	if g.Storm != 0 {
		add("storm", strconv.Itoa(g.Storm))
	}
	if g.MaxAddresses != 0 {
		add("addresses", strconv.Itoa(g.MaxAddresses))
	}
}

// Set sets one field of an alias, and reports whether Encode writes such a value. It ignores a key
// that is not a limit's.
func (g *Limits) Set(key, value string) bool {
	switch key {
	case "lock":
		g.LockMAC = value == "on"
		return g.LockMAC
	case "storm":
		return setLimit(&g.Storm, value, MostStorm)
	case "addresses":
		return setLimit(&g.MaxAddresses, value, MostAddresses)
	}
	return true
}

func setLimit(limit *int, value string, most int) bool {
	n, err := strconv.Atoi(value)
	*limit = n
	return err == nil && n >= NoLimit && n <= most
}

// String returns the limits for people, such as "locked;storm:off"; empty for the defaults.
func (g Limits) String() string {
	var words []string
	if g.LockMAC {
		words = append(words, "locked")
	}
	for _, l := range []struct {
		word  string
		limit int
	}{{"storm", g.Storm}, {"addresses", g.MaxAddresses}} {
		switch {
		case l.limit == NoLimit:
			words = append(words, l.word+":off")
		case l.limit != 0:
			words = append(words, fmt.Sprintf("%s:%d", l.word, l.limit))
		}
	}
	return strings.Join(words, ";")
}
