package console

import "strings"

// Quote writes a command line that a POSIX shell reads back as it is: it quotes the arguments where
// they need it, and puts spaces between them. A shell that has the result in $x gets the arguments back
// by eval "set -- $x"; without the quotation marks it would first split it at spaces and expand its
// wildcards.
func Quote(argv []string) string {
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
