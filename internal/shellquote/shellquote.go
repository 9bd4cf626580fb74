// Package shellquote writes command lines that a POSIX shell reads back as they are.
package shellquote

import "strings"

// Join quotes the arguments where they need it, and puts blanks between them. A shell that
// has the result in $x gets the arguments back by eval "set -- $x"; without the
// quotation marks it would first split it at blanks and expand its wildcards.
func Join(argv []string) string {
	quoted := make([]string, len(argv))
	for i, arg := range argv {
		quoted[i] = arg
		if arg == "" || strings.ContainsFunc(arg, needsQuote) {
			quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

func needsQuote(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_=.,:/+@%", r)
}
