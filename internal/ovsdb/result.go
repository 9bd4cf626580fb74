package ovsdb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// maxRows bounds the rows of one result.
const maxRows = 1 << 17

// ErrTimedOut is matched by the Error of a wait whose condition did not become true in time.
var ErrTimedOut = errors.New("timed out")

// An Error is the database's refusal of a transaction, of which nothing was done then.
type Error struct {
	Op      string // "insert", or "commit" if all operations were possible but not their sum
	Table   string
	Name    string // as RFC 7047 has it, such as "constraint violation"
	Details string
}

// Error names the operation and its table, and has the database's words.
func (e *Error) Error() string {
	text := e.Op
	if e.Table != "" {
		text += " in table " + e.Table
	}
	return fmt.Sprintf("the database refuses %s: %s", text, explain(e.Name, e.Details))
}

// ioError is the error of a database that cannot write its file, which RFC 7047, section 5.1, lets
// each server name as it likes.
const ioError = "I/O error"

func explain(name, details string) string {
	text := fmt.Sprintf("%.100q", name)
	if details != "" {
		text += fmt.Sprintf(": %.400q", details)
	}
	if name == ioError {
		text += " (check whether the disk of its file is full: df -h)"
	}
	return text
}

// Is reports whether target is what the error's name stands for.
func (e *Error) Is(target error) bool { return target == ErrTimedOut && e.Name == "timed out" }

// Result is what one operation has returned.
type Result struct {
	Count int  // rows that Update, Mutate and Delete have met
	UUID  UUID // of an inserted row
	rows  json.RawMessage
}

// Into decodes the rows of a Select into a slice of structs, whose fields have the columns' names
// and the types bool, int, string, UUID, Set and Map. It is an error if a row has another type, or
// if there are very many rows.
func Into[T any](r Result) ([]T, error) {
	if len(r.rows) == 0 {
		return nil, fmt.Errorf("%w: the result of a select has no rows", ErrProtocol)
	}
	var rows []T
	err := eachOf(r.rows, maxRows, func(text json.RawMessage) error {
		var row T
		err := json.Unmarshal(text, &row)
		rows = append(rows, row)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: its rows: %w", ErrProtocol, err)
	}
	return rows, nil
}

// eachOf calls visit for each item of a JSON array, which keeps a hostile server from making its
// client allocate very many empty items.
func eachOf(text []byte, most int, visit func(json.RawMessage) error) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if start, err := d.Token(); err != nil || start != json.Delim('[') {
		return errors.New("want an array")
	}
	for n := 0; d.More(); n++ {
		if n == most {
			return fmt.Errorf("more than %d items", most)
		}
		var item json.RawMessage
		if err := d.Decode(&item); err != nil {
			return err
		}
		if err := visit(item); err != nil {
			return err
		}
	}
	return nil
}

// parseResults reads the result of a transaction with those operations. It has one item for each,
// null for those after one that failed, and one more if the commit failed.
func parseResults(text json.RawMessage, ops []Op) ([]Result, error) {
	var results []Result
	err := eachOf(text, len(ops)+1, func(item json.RawMessage) error {
		var r *struct {
			Count   int
			UUID    *UUID
			Rows    json.RawMessage
			Error   string
			Details string
			IOError string `json:"io-error"` // errno(3) in words, an extension of ovsdb-server
		}
		if err := json.Unmarshal(item, &r); err != nil {
			return err
		}
		if r != nil && r.IOError != "" {
			r.Details = strings.TrimPrefix(r.Details+": "+r.IOError, ": ")
		}
		switch i := len(results); {
		case r == nil:
			return errors.New("an operation was left out")
		case r.Error != "" && i < len(ops):
			table, _ := ops[i]["table"].(string)
			return &Error{Op: fmt.Sprint(ops[i]["op"]), Table: table, Name: r.Error, Details: r.Details}
		case r.Error != "":
			return &Error{Op: "commit", Name: r.Error, Details: r.Details}
		}
		one := Result{Count: r.Count, rows: r.Rows}
		if r.UUID != nil {
			one.UUID = *r.UUID
		}
		results = append(results, one)
		return nil
	})
	var refused *Error
	switch {
	case errors.As(err, &refused):
		return nil, refused
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	case len(results) != len(ops):
		return nil, fmt.Errorf("%w: %d results of %d operations", ErrProtocol, len(results), len(ops))
	}
	return results, nil
}
