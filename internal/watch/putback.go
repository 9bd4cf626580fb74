package watch

import (
	"context"
	"slices"

	"vmnet/bridge/brport"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// putBack puts managed taps, the ends of namespaces, and then the taps of libvirt domains, back on
// the bridges of these names, and reports whether any failed.
func (w *watcher) putBack(ctx context.Context, names []string, last bool) (failed bool) {
	actions, err := w.Manager.PutBack(names...)
	failed = w.tried(actions, err, last)
	if w.Ends != nil {
		actions, err = w.Ends.PutBack(ctx, names...)
		failed = w.tried(actions, err, last) || failed
	}
	return w.putBackForeign(ctx, names, last) || failed
}

// tried is did for an attempt, and reports whether anything failed. It logs a failure only at the
// last one: most often an earlier attempt succeeds.
func (w *watcher) tried(actions []nic.Action, err error, last bool) (failed bool) {
	if !last {
		failed = slices.ContainsFunc(actions, isFailed)
		actions = slices.DeleteFunc(actions, isFailed)
	}
	if err != nil && !last {
		failed, err = true, nil
	}
	return w.did(actions, err) || failed
}

func isFailed(a nic.Action) bool { return a.Error != "" }

// putBackForeign asks libvirt which taps belong on the bridges, puts them back, and reports whether
// any failed. It asks nothing unless a tap has lost its bridge.
func (w *watcher) putBackForeign(ctx context.Context, names []string, last bool) (failed bool) {
	conn := w.domains.current()
	if conn == nil { // once libvirt is connected, all bridges are checked
		return false
	}
	lost, err := w.Manager.ForeignWithoutMaster()
	if err != nil || !lost {
		return err != nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	running, err := conn.ListDomains(ctx, libvirt.ListActive)
	if err != nil {
		return true
	}
	for _, dom := range running {
		def, err := definition(ctx, conn, dom)
		if err != nil {
			failed = failed || !isNoDomain(err)
			continue
		}
		for _, x := range def.Interfaces {
			if onBridge(x) && slices.Contains(names, x.Source.Bridge) {
				failed = w.putBackInterface(def, x, last) || failed
			}
		}
	}
	return failed
}

// onBridge reports whether libvirt has made a tap for an interface and put it on a bridge. The XML
// of a running domain names the bridge of a network.
func onBridge(x domainxml.Interface) bool {
	return (x.Type == "bridge" || x.Type == "network") && x.Target != "" && len(x.MAC) == 6
}

func (w *watcher) putBackInterface(def *domainxml.Definition, x domainxml.Interface, last bool) (failed bool) {
	cfg := w.ports.declaredFor(def.UUID, x)
	done, err := w.Manager.PutBackForeign(x.Target, x.MAC, x.Source.Bridge, cfg)
	if isGone(err) || err == nil && !done {
		return false
	}
	if err == nil || last {
		w.report(Report{
			Text: "put back on " + x.Source.Bridge + settingsText(cfg), Guest: def.Name,
			NIC: x.MAC.String(), Interface: x.Target, Err: err,
		})
	}
	return err != nil
}

func settingsText(cfg brport.Settings) string {
	if cfg.IsZero() {
		return ""
	}
	return " with " + cfg.String()
}
