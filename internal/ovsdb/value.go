package ovsdb

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// UUID names a row: 36 characters, hexadecimal digits and dashes.
type UUID string

// MarshalJSON implements [json.Marshaler].
func (u UUID) MarshalJSON() ([]byte, error) { return json.Marshal([2]string{"uuid", string(u)}) }

// UnmarshalJSON implements [json.Unmarshaler].
func (u *UUID) UnmarshalJSON(text []byte) error {
	var pair []string
	if err := json.Unmarshal(text, &pair); err != nil {
		return err
	}
	if len(pair) != 2 || pair[0] != "uuid" || !validUUID(pair[1]) {
		return fmt.Errorf("not a UUID: %.60q", text)
	}
	*u = UUID(pair[1])
	return nil
}

func validUUID(s string) bool {
	for i, c := range s {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') ||
			!dash && !strings.ContainsRune("0123456789abcdefABCDEF", c) {
			return false
		}
	}
	return len(s) == 36
}

// Named refers to a row that the same transaction inserts, by the name that Insert has given it: a
// letter or underscore, then digits too.
type Named string

// MarshalJSON implements [json.Marshaler].
func (n Named) MarshalJSON() ([]byte, error) {
	return json.Marshal([2]string{"named-uuid", string(n)})
}

// Set is the value of a column that may have none, one or many values. The database writes a single
// value without the set around it.
type Set[T any] []T

// First returns the first value; the zero value and false if there is none.
func (s Set[T]) First() (v T, ok bool) {
	if len(s) > 0 {
		return s[0], true
	}
	return v, false
}

// MarshalJSON implements [json.Marshaler].
func (s Set[T]) MarshalJSON() ([]byte, error) {
	if s == nil {
		s = Set[T]{}
	}
	return json.Marshal([2]any{"set", []T(s)})
}

// UnmarshalJSON implements [json.Unmarshaler].
func (s *Set[T]) UnmarshalJSON(text []byte) error {
	*s = nil
	add := func(item json.RawMessage) error {
		var v T
		err := json.Unmarshal(item, &v)
		*s = append(*s, v)
		return err
	}
	if items, ok := tagged(text, "set"); ok {
		return eachOf(items, maxRows, add)
	}
	return add(text)
}

// tagged returns the second item of a pair whose first item is tag. ok is false for anything else.
func tagged(text []byte, tag string) (rest json.RawMessage, ok bool) {
	var pair []json.RawMessage
	if len(text) == 0 || text[0] != '[' || json.Unmarshal(text, &pair) != nil || len(pair) != 2 {
		return nil, false
	}
	var first string
	return pair[1], json.Unmarshal(pair[0], &first) == nil && first == tag
}

// Map is the value of a column that maps strings to strings.
type Map map[string]string

// MarshalJSON implements [json.Marshaler].
func (m Map) MarshalJSON() ([]byte, error) {
	pairs := make([][2]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, [2]string{k, m[k]})
	}
	return json.Marshal([2]any{"map", pairs})
}

// UnmarshalJSON implements [json.Unmarshaler].
func (m *Map) UnmarshalJSON(text []byte) error {
	pairs, ok := tagged(text, "map")
	if !ok {
		return fmt.Errorf("not a map: %.60q", text)
	}
	*m = Map{}
	return eachOf(pairs, maxRows, func(item json.RawMessage) error {
		var pair []string
		if err := json.Unmarshal(item, &pair); err != nil {
			return err
		}
		if len(pair) != 2 {
			return errors.New("not a pair of a key and a value")
		}
		(*m)[pair[0]] = pair[1]
		return nil
	})
}
