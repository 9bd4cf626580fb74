package console

import "strings"

// Quote returns argv as a command line for a POSIX shell: it quotes arguments that need it, and
// joins them with spaces. A shell that has the result in $x gets the arguments back with eval "set
// -- $x"; without the double quotes it would first split $x at spaces and expand wildcards.
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
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') &&
		!strings.ContainsRune("-_=.,:/+@%", r)
}
