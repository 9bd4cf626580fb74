package nic

// A Change is one thing that a set changes of a NIC, in the words of the flags.
type Change struct {
	Flag string `json:"flag"` // that asks for it, without dashes
	From string `json:"from"` // empty for what is not set
	To   string `json:"to"`
}

// Persistence is the change of whether libvirt stores the NIC.
func Persistence(stored bool) Change {
	if stored {
		return Change{Flag: "persistent", To: "true"}
	}
	return Change{Flag: "persistent", From: "true"}
}

// ChangeResult is the result of a set.
type ChangeResult struct {
	NIC     NIC
	Changes []Change
	Changed bool     // false if the NIC was as asked for
	Notices []string // for the user; they are no errors

	// Differences lists what differs from the record and cannot be mended.
	Differences []Difference
}
