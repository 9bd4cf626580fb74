package ovsdb

import "time"

// An Op is an operation of a transaction (RFC 7047, section 5.2).
type Op map[string]any

// Row has values of columns by their names: bool, int and string, UUID, Named, Set and Map.
type Row map[string]any

// A Condition selects the rows of which it is true (RFC 7047, section 5.1).
type Condition [3]any

// A Mutation changes a column (RFC 7047, section 5.1).
type Mutation [3]any

// Where returns the condition that holds if the function, such as "==" or "includes", is true of
// the column and the value.
func Where(column, function string, value any) Condition { return Condition{column, function, value} }

// Is selects the row with that UUID.
func Is(id UUID) Condition { return Where("_uuid", "==", id) }

// Change returns the mutation of a column by an operator, such as "insert", "delete" or "+=".
func Change(column, operator string, value any) Mutation { return Mutation{column, operator, value} }

// Select reads columns of the rows that meet all conditions; no condition selects all rows.
// Result.Into has them.
func Select(table string, columns []string, where ...Condition) Op {
	return Op{"op": "select", "table": table, "where": all(where), "columns": columns}
}

// Insert makes a row. Other operations of the transaction name it Named(name). A row of a table
// that is no root of the database, and that no other row refers to, ends with the transaction.
func Insert(table, name string, row Row) Op {
	return Op{"op": "insert", "table": table, "uuid-name": name, "row": row}
}

// Update sets columns of the rows that meet all conditions. Result.Count says of how many.
func Update(table string, row Row, where ...Condition) Op {
	return Op{"op": "update", "table": table, "where": all(where), "row": row}
}

// Mutate changes columns of the rows that meet all conditions. Result.Count says of how many.
func Mutate(table string, mutations []Mutation, where ...Condition) Op {
	return Op{"op": "mutate", "table": table, "where": all(where), "mutations": mutations}
}

// maxWait bounds how long a database waits within one transaction.
const maxWait = 2 * time.Second

// Await makes the transaction wait, at most for that long and never longer than 2 s, until a row
// meets all conditions. If none does, the transaction fails with an error that matches ErrTimedOut.
// Without a wait it is the guard of what follows in the same transaction.
func Await(within time.Duration, table string, where ...Condition) Op {
	within = max(0, min(within, maxWait))
	return Op{
		"op": "wait", "timeout": within.Milliseconds(), "table": table, "where": all(where),
		"columns": []string{"_uuid"}, "until": "!=", "rows": []Row{},
	}
}

// AwaitNone is Await until no row meets all conditions.
func AwaitNone(within time.Duration, table string, where ...Condition) Op {
	o := Await(within, table, where...)
	o["until"] = "=="
	return o
}

// all returns the conditions as the protocol wants them: a list, though it is empty.
func all(where []Condition) []Condition {
	if where == nil {
		return []Condition{}
	}
	return where
}
