package hook

import (
	"cmp"
	"fmt"

	"vmnet/internal/libvirthook/declared"
	"vmnet/libvirt/domainxml"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// Explanation says what the hook does for a guest. Its JSON keys are stable.
type Explanation struct {
	Guest      string      `json:"guest"`
	NICs       []Declared  `json:"nics"`
	Operations []Operation `json:"operations"`
}

// Declared is a declared NIC.
type Declared struct {
	ID        string `json:"nic"`
	MAC       string `json:"mac"`       // empty: libvirt will choose one
	Interface string `json:"interface"` // the device; empty: libvirt chooses its name, or there is no such interface
	Made      bool   `json:"made"`      // vmnet makes the device, not libvirt
	Type      string `json:"type"`      // "tap" or "macvtap"
	Source    string `json:"source"`    // the bridge or parent device
	Mode      string `json:"mode,omitempty"`
	Port      string `json:"port,omitempty"` // settings of the bridge port: "vlan:10;isolated"
	Queues    int    `json:"queues"`
}

// Operation says what the hook does at an operation of libvirt.
type Operation struct {
	Op      string   `json:"operation"` // "prepare begin"
	Does    []string `json:"does"`      // in words
	Failure string   `json:"failure"`   // the effect of a failure; empty if nothing is done
}

// Explain returns what the hook would do for a domain, without looking at the machine.
func Explain(def *domainxml.Definition) (Explanation, error) {
	nics, err := declared.Parse(def)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{Guest: def.Name, NICs: []Declared{}}
	for _, n := range nics {
		e.NICs = append(e.NICs, describe(n))
	}
	for _, op := range operations {
		o := Operation{Op: op.name + " " + op.subOp, Does: texts(op.name, nics)}
		if len(o.Does) > 0 {
			o.Failure = op.failure
		}
		e.Operations = append(e.Operations, o)
	}
	return e, nil
}

func describe(n declared.NIC) Declared {
	d := Declared{
		ID: n.ID, MAC: n.MAC.String(), Made: n.Made && !n.Adopted(), Type: "tap",
		Source: n.Place(), Port: n.Port.String(), Queues: max(n.Interface.Queues, 1),
	}
	if n.Made {
		d.Interface = n.Interface.Target
	}
	if n.Spec.Routed != "" {
		d.Type = nic.TypeRouted
	}
	if l := n.Spec.Lower; l != nil {
		d.Type, d.Mode = string(l.Kind), cmp.Or(l.Mode, vtap.Modes(l.Kind)[0])
	}
	return d
}

// texts describes what an operation does for the NICs.
func texts(op string, nics []declared.NIC) []string {
	does := []string{} // no null in JSON
	made := false
	for _, n := range nics {
		d := describe(n)
		made = made || n.Made && !n.Absent()
		switch {
		case n.Absent() && op == "prepare":
			does = append(does, fmt.Sprintf("make nothing for %s: no interface has <alias name='%s'/>",
				n.ID, domainxml.Alias(n.ID)))
		case n.Absent():
		case op == "migrate" && waits(n):
			does = append(does, fmt.Sprintf(
				"keep %s down until the guest has arrived; then raise it, and announce the guest", d.tap()))
		case n.Adopted() && op == "prepare":
			does = append(does, fmt.Sprintf("make sure that libvirt can make %s", d.tap()))
		case n.Adopted() && op == "start":
			does = append(does, d.adopting())
		case n.Made && op == "prepare":
			does = append(does, d.making())
		case !n.Made && op == "start":
			does = append(does, fmt.Sprintf("set the port of the tap that libvirt has made for %s: %s",
				n.MAC, cmp.Or(d.Port, "nothing")))
		case !n.Made && (op == "started" || op == "reconnect"):
			does = append(does, fmt.Sprintf("check that the port of the tap for %s is set: %s",
				n.MAC, cmp.Or(d.Port, "nothing")))
		case n.Made && d.Type == "tap" && (op == "started" || op == "reconnect"):
			does = append(does, fmt.Sprintf("check that %s ends with QEMU and is on bridge %s; log it if not",
				d.tap(), d.Source))
		}
	}
	if made && op == "release" {
		does = append(does, "remove the guest's devices that no process holds")
	}
	return does
}

// tap names a tap or macvtap that exists by then.
func (d Declared) tap() string {
	return cmp.Or(d.Interface, fmt.Sprintf("the %s for %s", d.Type, cmp.Or(d.MAC, "the MAC that libvirt chooses")))
}

// adopting describes the adoption of a device that libvirt makes.
func (d Declared) adopting() string {
	if d.Type != "tap" {
		return fmt.Sprintf("set up %s, which libvirt has made on %s: mode %s", d.tap(), d.Source, d.Mode)
	}
	text := fmt.Sprintf("put %s, which libvirt has made, on bridge %s", d.tap(), d.Source)
	if d.Port != "" {
		text += ", port " + d.Port
	}
	return text
}

// making describes a device that vmnet makes.
func (d Declared) making() string {
	text := fmt.Sprintf("make tap %s on bridge %s", d.Interface, d.Source)
	if d.Type != "tap" {
		text = fmt.Sprintf("make %s %s on %s, mode %s", d.Type, d.Interface, d.Source, d.Mode)
	}
	if d.Port != "" {
		text += ", port " + d.Port
	}
	if d.Queues > 1 {
		text += fmt.Sprintf(", %d queues", d.Queues)
	}
	return text + ", for " + cmp.Or(d.MAC, "the MAC that libvirt chooses")
}
