package nic

// Difference is one thing that is not as it should be.
type Difference struct {
	VM        string `json:"vm"`
	NIC       string `json:"nic"`
	Interface string `json:"interface"`
	What      string `json:"what"`
	Want      string `json:"want"`
	Found     string `json:"found"`
	MendedBy  Mender `json:"mended_by"`
	Mend      string `json:"mend"` // what a person types or does
}

// Mender says who can mend a Difference.
type Mender string

// Who mends what: reconcile also means the same attach again.
const (
	MendReconcile Mender = "reconcile" // vmnet reconcile, as root
	MendAttach    Mender = "attach"    // the same attach again, which replaces the NIC
	MendDetach    Mender = "detach"    // a detach, and an attach where the NIC is still wanted
	MendAdmin     Mender = "admin"     // who has changed the host
)
