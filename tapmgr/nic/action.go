package nic

// Action is one thing that Reconcile did, would do, or left alone.
type Action struct {
	VM        string `json:"vm"`
	NIC       string `json:"nic"`
	Interface string `json:"interface"`
	Action    string `json:"action"`          // in words
	Changed   bool   `json:"changed"`         // it changes something
	Error     string `json:"error,omitempty"` // why it did not succeed
}
