package vport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// plainConfig is a Config without its methods. textConfig is one with its addresses as text.
type (
	plainConfig Config
	textConfig  struct {
		plainConfig
		MACs []string `json:"macs,omitempty"`
	}
)

// MarshalJSON writes addresses as 52:54:00:01:02:03.
func (cfg Config) MarshalJSON() ([]byte, error) {
	t := textConfig{plainConfig: plainConfig(cfg)}
	for _, mac := range cfg.MACs {
		t.MACs = append(t.MACs, mac.String())
	}
	return json.Marshal(t)
}

// UnmarshalJSON parses what MarshalJSON writes. It refuses unknown settings: without them, the port
// would not be what the sender wants.
func (cfg *Config) UnmarshalJSON(b []byte) error {
	var t textConfig
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return fmt.Errorf("port settings: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("port settings: unexpected text after the object")
	}
	*cfg = Config(t.plainConfig)
	cfg.MACs = nil
	for _, text := range t.MACs {
		mac, err := net.ParseMAC(text)
		if err != nil {
			return fmt.Errorf("port settings: %w", err)
		}
		cfg.MACs = append(cfg.MACs, mac)
	}
	return nil
}
