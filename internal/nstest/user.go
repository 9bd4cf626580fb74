package nstest

import "strconv"

// Unprivileged returns the options by which setpriv(1) runs a program as a user without any
// capability, who cannot gain one. The group has the user's number.
func Unprivileged(uid int) []string {
	id := strconv.Itoa(uid)
	return []string{
		"--reuid", id, "--regid", id, "--clear-groups",
		"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
	}
}
