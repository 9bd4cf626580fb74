package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/access/bridgeconf"
	"vmnet/internal/access/policy"
	"vmnet/internal/cli/nicflags"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check which users may have which NICs from qemu-netup",
		Long: `Check the files that say which users may have which NICs without being root: ` + policy.DefaultPath + `
and ` + bridgeconf.DefaultPath + `. Both must allow a NIC on a bridge.`,
	}
	group(cmd)
	cmd.AddCommand(a.policyCheckCommand(), a.policyTestCommand())
	return cmd
}

func (a *app) policyCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a policy for errors",
		Long: `Check a policy for errors, by default ` + policy.DefaultPath + `. An error is reported with its line
and column. Something that is valid but probably unintended, such as an unknown user, is a note.`,
		Example: `  vmnet policy check
  vmnet policy check ./policy.yaml -o json`,
		Args: atMostOne("a file"),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		path := policy.DefaultPath
		if len(args) > 0 {
			path = args[0]
		}
		return a.policyCheck(path, *format == "json")
	})
	return cmd
}

// policyChecked is the result for a file without errors.
type policyChecked struct {
	File     string   `json:"file"`
	Rules    int      `json:"rules"`
	Profiles []string `json:"profiles"`
	Warnings []string `json:"warnings"`
}

func (a *app) policyCheck(path string, json bool) error {
	p, err := policy.LoadDraft(path)
	if err != nil {
		return err
	}
	c := policyChecked{File: path, Rules: p.Rules(), Profiles: []string{}, Warnings: []string{}} // no null in JSON
	c.Profiles, c.Warnings = append(c.Profiles, p.Profiles()...), append(c.Warnings, p.Warnings()...)
	if json {
		return a.printJSON(c)
	}
	a.notes(c.Warnings)
	return a.line("%s: %s, %s, ok", c.File, count(c.Rules, "rule"), count(len(c.Profiles), "profile"))
}

// policyTest is the command line of policy test.
type policyTest struct {
	request         policy.Request
	user            string
	shareMemory     string // instead of a NIC: the user of a switch
	file            string // empty: the default file, which need not exist
	bridgeConf      string
	macvtap, ipvtap string
	security        nic.Security
	json            bool
}

func (a *app) policyTestCommand() *cobra.Command {
	var o policyTest
	cmd := &cobra.Command{
		Use:   "test --user USER --{bridge|network|...} PLACE",
		Short: "Show whether a user may have a NIC, and why",
		Long: `Show whether a user may have a NIC: the rule that allows it, or the reason for the
denial and its cure. Exit status: 0 for allowed, 1 for denied, 2 for wrong usage.
With --share-memory it is about the memory of the user's guests, not about a NIC.

bridge.conf and the files that it includes are read with the caller's privileges. If the modes of
included files decide to whom they apply, run this command as that user. Only bridge.conf binds
root, and only if qemu-netup replaces QEMU's helper: the answer for root is for that case.`,
		Example: `  vmnet policy test --user alice --bridge br0 --vlan 10
  vmnet policy test --user alice --bridge br0 --file ./policy.yaml
  vmnet policy test --user alice --vm alice-1 --ipvtap eth1 --ip 192.0.2.7
  sudo -u alice vmnet policy test --user alice --bridge br0`,
		Args: noArgs(),
	}
	o.flags(cmd)
	format := outputFlag(cmd)
	a.completePolicyTest(cmd)
	cmd.RunE = a.verb(func(*cobra.Command, []string) error {
		o.json = *format == "json"
		return a.policyTest(&o)
	})
	return cmd
}

func (o *policyTest) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.user, "user", "",
		"the `USER` who asks, by name or id, with the groups that this machine lists for the user")
	f.StringVar(&o.request.Guest, "vm", "", "the guest's `NAME` (default none, since QEMU's bridge helper gets none)")
	f.StringVar(&o.request.Bridge, "bridge", "", "the requested `BRIDGE`")
	f.StringVar(&o.request.Network, "network", "", "the requested `NETWORK`")
	f.StringVar(&o.request.Routed, "routed", "", "the `UPLINK` of a requested routed NIC")
	f.StringVar(&o.macvtap, "macvtap", "", "the `PARENT` device of a requested macvtap")
	f.StringVar(&o.ipvtap, "ipvtap", "", "the `PARENT` device of a requested ipvtap")
	f.StringVar(&o.shareMemory, "share-memory", "",
		"whether a switch of this `USER` may have the memory of the user's guests, by --via vhost-user")
	f.StringVar(&o.request.Mode, "mode", "", "the mode of a requested macvtap or ipvtap (default bridge, or l2)")
	f.Var(nicflags.Value("ADDR", "", func(s string) error {
		ip, err := policy.ParseIP(s)
		o.request.Addrs = append(o.request.Addrs, ip)
		return err
	}), "ip", "a requested address of the guest: on a network, routed, of an ipvtap, or with --port-security (repeatable)")
	nicflags.AddSecurity(f, &o.security)
	nicflags.AddInbound(f, &o.request.AllowIn)
	nicflags.AddRates(f, &o.request.Rates)
	nicflags.AddShape(f, &o.request.Rates)
	f.StringVar(&o.request.IfaceID, "iface-id", "", "the requested `ID` of a port of Open vSwitch, for OVN")
	f.StringVar(&o.request.OVSDB, "ovsdb", "", "the requested `SOCKET` of Open vSwitch's database")
	nicflags.AddPort(cmd.Flags(), &o.request.Port)
	nicflags.AddMAC(f, &o.request.MAC, "the requested address (default none: it is derived from names)")
	o.request.Queues, o.request.NICs = 1, 1
	nicflags.Number(f, &o.request.Queues, "queues", "N", "requested queue pairs")
	nicflags.Number(f, &o.request.NICs, "nics", "N", "how many NICs the user would then have")
	f.StringVar(&o.file, "file", "", "`FILE` with the policy; any user may own it (default "+policy.DefaultPath+")")
	f.StringVar(&o.bridgeConf, "bridge-conf",
		bridgeconf.DefaultPath, "`FILE` with the bridges that QEMU's users may have")
	require(cmd, "user")
	cmd.MarkFlagsMutuallyExclusive("bridge", "network", "routed", "macvtap", "ipvtap", "share-memory")
	cmd.MarkFlagsOneRequired("bridge", "network", "routed", "macvtap", "ipvtap", "share-memory")
}

func (a *app) completePolicyTest(cmd *cobra.Command) {
	modes := append(vtap.Modes(vtap.Macvtap), vtap.Modes(vtap.IPVtap)...)
	complete(cmd, "mode", cobra.FixedCompletions(modes, noFiles))
	complete(cmd, "ip", cobra.NoFileCompletions)
	complete(cmd, "allow-in", cobra.FixedCompletions(nicflags.Inbounds, noFiles))
	complete(cmd, "port-security", cobra.FixedCompletions(nicflags.Securities, noFiles))
	complete(cmd, "vm", cobra.NoFileCompletions)
	complete(cmd, "iface-id", cobra.NoFileCompletions)
	complete(cmd, "user", cobra.NoFileCompletions)
	complete(cmd, "share-memory", cobra.NoFileCompletions)
	complete(cmd, "bridge", a.bridgeNames)
	complete(cmd, "network", a.networksToJoin)
	complete(cmd, "routed", a.interfaceNames)
	complete(cmd, "macvtap", a.interfaceNames)
	complete(cmd, "ipvtap", a.interfaceNames)
}

// policyTest checks both files, even if the first denies, so that all cures are printed at once.
func (a *app) policyTest(o *policyTest) error {
	o.place()
	if err := findUser("user", o.user, &o.request); err != nil {
		return err
	}
	var sharing policy.Sharing
	if o.shareMemory != "" {
		var owner policy.Request
		if err := findUser("share-memory", o.shareMemory, &owner); err != nil {
			return err
		}
		sharing = policy.Sharing{UID: o.request.UID, GIDs: o.request.GIDs, Owner: owner.UID}
	} else if err := o.request.Validate(); err != nil {
		return usagef("%w", err)
	}
	p, err := a.loadPolicy(o.file)
	if err != nil {
		return err
	}
	answer := policyAnswer{By: []string{}, Reasons: []policy.Reason{}} // no null in JSON
	if o.shareMemory != "" {
		answer.policy(p.MayShare(sharing))
	} else {
		answer.policy(p.Decide(o.request))
	}
	if o.request.Bridge != "" {
		a.askBridgeConf(&answer, o)
	}
	answer.Allowed = len(answer.Reasons) == 0
	return a.printAnswer(answer, o.json)
}

// place fills in the request for a network, whose bridge has its name, and for a macvtap or ipvtap;
// the mode is the usual one if none is given.
func (o *policyTest) place() {
	q := &o.request
	q.Checks, q.EtherTypes = o.security.Checks, o.security.EtherTypes
	switch {
	case q.Network != "":
		q.Bridge = q.Network
		return
	case o.macvtap != "":
		q.Lower, q.Kind = o.macvtap, vtap.Macvtap
	case o.ipvtap != "":
		q.Lower, q.Kind = o.ipvtap, vtap.IPVtap
	default:
		return
	}
	q.Mode = cmp.Or(q.Mode, vtap.Modes(q.Kind)[0])
}

// mayShare returns nil if the policy permits a switch of user owner to have the memory of a guest
// of user uid, or why not.
func mayShare(uid, owner int) error {
	p, err := policy.Load(policy.DefaultPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var q policy.Request
	if err := findUser("user", strconv.Itoa(uid), &q); err != nil {
		return err
	}
	v := p.MayShare(policy.Sharing{UID: uid, GIDs: q.GIDs, Owner: owner})
	if v.Allowed {
		return nil
	}
	return errors.New(v.Reasons[0].String())
}

// findUser fills in the ids of a user, given to a flag by a name, or by an id that may have no
// name.
func findUser(flag, text string, q *policy.Request) error {
	u, err := user.Lookup(text)
	if err != nil {
		id, numErr := strconv.ParseUint(text, 10, 32)
		if numErr != nil {
			return fmt.Errorf("--%s %q: %w (give a name of /etc/passwd, or an id)", flag, text, err)
		}
		q.UID = int(id)
		if u, err = user.LookupId(text); err != nil {
			return nil // without a name it is in no group
		}
	}
	if q.UID, err = strconv.Atoi(u.Uid); err != nil {
		return fmt.Errorf("--%s %q: uid %q: %w", flag, text, u.Uid, err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("--%s %q: look up groups: %w", flag, text, err)
	}
	for _, g := range groups {
		if id, err := strconv.Atoi(g); err == nil {
			q.GIDs = append(q.GIDs, id)
		}
	}
	return nil
}

// loadPolicy reads the policy as qemu-netup does, or a draft of one.
func (a *app) loadPolicy(file string) (*policy.Policy, error) {
	if file == "" {
		p, err := policy.Load(policy.DefaultPath)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return p, err
	}
	p, err := policy.LoadDraft(file)
	if err == nil {
		a.notes(p.Warnings())
	}
	return p, err
}

// policyAnswer is the answer of both files.
type policyAnswer struct {
	Allowed bool            `json:"allowed"`
	By      []string        `json:"by"`
	Reasons []policy.Reason `json:"reasons"`
	Example string          `json:"example,omitempty"`
}

func (w *policyAnswer) policy(v policy.Verdict) {
	w.Reasons, w.Example = append(w.Reasons, v.Reasons...), v.Example
	if v.Allowed {
		w.By = append(w.By, v.By)
	}
}

// askBridgeConf adds the answer of bridge.conf, which QEMU's helper asks for root as well.
func (a *app) askBridgeConf(w *policyAnswer, o *policyTest) {
	acl, err := bridgeconf.Read(o.bridgeConf)
	if err != nil {
		w.Reasons = append(w.Reasons, policy.Reason{Text: err.Error()})
		return
	}
	d := acl.Decide(o.request.Bridge)
	included := len(d.Skipped) > 0 || d.Rule != nil && d.Rule.File != acl.Path
	if included && o.request.UID != os.Getuid() {
		a.note(
			fmt.Sprintf(
				"files that %s includes were read with your privileges, which may differ from those of %s (run it as that user)",
				acl.Path, o.user))
	}
	if err := d.Err(); err != nil {
		w.Reasons = append(w.Reasons, policy.Reason{Text: err.Error()})
		return
	}
	w.By = append(w.By, d.Rule.String())
}

func (a *app) printAnswer(w policyAnswer, json bool) error {
	print := a.printAnswerText
	if json {
		print = func(w policyAnswer) error { return a.printJSON(w) }
	}
	if err := print(w); err != nil || w.Allowed {
		return err
	}
	return exitStatus(exitFailure)
}

func (a *app) printAnswerText(w policyAnswer) error {
	if w.Allowed {
		return a.line("allowed by %s", strings.Join(w.By, " and "))
	}
	for _, r := range w.Reasons {
		if err := a.line("denied: %s", r); err != nil {
			return err
		}
	}
	if w.Example == "" {
		return nil
	}
	for l := range strings.Lines(w.Example) {
		if err := a.line("%s", strings.TrimSuffix(l, "\n")); err != nil {
			return err
		}
	}
	return nil
}
