package config

import (
	"strings"

	"vmnet/internal/alias"
)

// KeyNetwork is the key, in the aliases of a network's links, whose value is the network's name.
const KeyNetwork = "network"

const (
	keySettings = "server"
	keyGuests   = "guests"
)

// ServerMark is what the alias of the port of a network's server says.
type ServerMark struct {
	Network  string
	Settings string // a sum of all that the server was started with
	Guests   string // a sum of the guests that it knows (package roster); empty until it knows any
}

// String returns the alias.
func (m ServerMark) String() string {
	text := alias.Prefix + KeyNetwork + "=" + alias.Escape(m.Network) + " " + keySettings + "=" + m.Settings
	if m.Guests != "" {
		text += " " + keyGuests + "=" + m.Guests
	}
	return text
}

// ParseServerMark reads the alias of a link; ok is false if it is no server's.
func ParseServerMark(text string) (m ServerMark, ok bool) {
	rest, ok := strings.CutPrefix(text, alias.Prefix)
	if !ok {
		return m, false
	}
	for field := range strings.SplitSeq(rest, " ") {
		key, value, err := alias.Field(field)
		if err != nil {
			return ServerMark{}, false
		}
		switch key {
		case KeyNetwork:
			m.Network = value
		case keySettings:
			m.Settings = value
		case keyGuests:
			m.Guests = value
		}
	}
	return m, m.Network != "" && m.Settings != ""
}
