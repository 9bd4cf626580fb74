package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/metrics"
	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/nsport"
	"vmnet/internal/sdnotify"
	"vmnet/internal/watch"
	"vmnet/libvirt"
	"vmnet/tapmgr"
)

// watchVerb is the command line of watch.
type watchVerb struct {
	log       string // "text" or "json"
	noLibvirt bool
	networks  networkFlags
	guests    string // directory of declared guests
	listen    string // where metrics are served; empty for nowhere
}

func (a *app) watchCommand() *cobra.Command {
	var o watchVerb
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Keep NICs as they should be, until it is stopped",
		Long: `Stay in the foreground, and do what libvirt has no hook for: give taps that libvirt
makes for NICs attached live the port settings that their domain declares; put ports back on a
bridge that was deleted and recreated, those of containers too; let macvtaps with rx filter mirror accept the multicast
groups that their guests have joined; remove macvtaps that libvirt guests leave behind; keep, or
remove, the entries by which the host answers for routed guests; remove the ifb devices that shaped
NICs leave behind; give guests that start the NICs
that their files declare; and mend networks that others have changed, for example by flushing all
rules. With --listen it serves the metrics of vmnet metrics. SIGHUP has it read the files of guests again. Each action is logged to stderr as a line, with its
level for systemd's journal. Nothing breaks without vmnet watch, nor when it ends. See
vmnet-watch(8).`,
		Example: `  vmnet watch
  systemctl enable --now vmnet-watch`,
		Args: noArgs(),
	}
	o.log = "text"
	choice(cmd, cmd.Flags(), &o.log, "log", "", "how lines are logged: text for people, json for programs", "text",
		"json")
	cmd.Flags().BoolVar(&o.noLibvirt, "no-libvirt", false, "do not look for libvirt")
	cmd.Flags().StringVar(&o.networks.config, "config-dir", "", "`DIRECTORY` of the files of networks (default "+
		config.DefaultDir+")")
	cmd.Flags().StringVar(&o.networks.state, "state-dir", "", "`DIRECTORY` of their servers' lease files (default "+
		dhcp.DefaultState+")")
	guestsDirFlag(cmd, &o.guests)
	cmd.Flags().Var(nicflags.Value("ADDRESS", "", func(s string) (err error) {
		o.listen = s
		_, err = metrics.ParseAddress(s)
		return err
	}), "listen", "serve metrics for Prometheus at `ADDRESS`: localhost:PORT, or the absolute path of a socket")
	o.networks.user = userChoice{given: true} // those of users end as a whole
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		return a.withNetworks(cmd.Context(), &o.networks, func(networks *network.Manager) error {
			return a.withManager(func(verbs *tapmgr.Manager) error {
				verbs.Progress = nil // the log has what came of it
				return a.watch(cmd.Context(), &o, networks, verbs)
			})
		})
	})
	return cmd
}

// watch watches until ctx ends. verbs makes and changes the NICs of declared guests.
func (a *app) watch(ctx context.Context, o *watchVerb, networks *network.Manager, verbs *tapmgr.Manager) error {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	m, err := tapmgr.Open(a.netns)
	if err != nil {
		return err
	}
	defer m.Close()
	log := a.logger(o.log)
	cfg := watch.Config{NS: ns, Manager: m, Report: func(r watch.Report) { logReport(ctx, log, r) }, Ready: func() {
		log.InfoContext(ctx, "ready")
		if err := sdnotify.Notify("READY=1"); err != nil {
			log.WarnContext(ctx, "cannot notify systemd", "error", err)
		}
	}}
	cfg.Networks, cfg.Rejoin = networks, verbs.Rejoin
	if cfg.Ends, err = nsport.Open(a.netns); err != nil {
		return err
	}
	defer cfg.Ends.Close()
	if cfg.Declared, err = a.declared(ctx, verbs, o.guests); err != nil {
		return err
	}
	if !o.noLibvirt {
		cfg.Commit = verbs.CommitArrived
		cfg.Dial, cfg.DialMonitor = dialer(a.libvirt, true), dialer(a.libvirt, false)
		cfg.MayBeAbsent = a.libvirt == ""
	}
	stopMetrics, err := a.serveMetrics(ctx, o.listen, log)
	if err != nil {
		return err
	}
	defer stopMetrics()
	err = watch.Run(ctx, cfg)
	log.InfoContext(ctx, "ended")
	return errors.Join(err, sdnotify.Notify("STOPPING=1"))
}

// dialer returns a function that connects to the libvirt of a URI or socket path; empty means the
// system's.
func dialer(target string, readOnly bool) func(context.Context) (*libvirt.Conn, error) {
	d := libvirt.Dialer{URI: target, ReadOnly: readOnly}
	if strings.HasPrefix(target, "/") {
		d.URI, d.Path = "", target
	}
	return d.Dial
}

// logReport writes one line. The handlers quote text that others have chosen.
func logReport(ctx context.Context, log *slog.Logger, r watch.Report) {
	level := slog.LevelInfo
	var attrs []slog.Attr
	for _, field := range []struct{ key, value string }{
		{"guest", r.Guest},
		{"nic", r.NIC},
		{"interface", r.Interface},
	} {
		if field.value != "" {
			attrs = append(attrs, slog.String(field.key, field.value))
		}
	}
	if r.Err != nil {
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("error", r.Err.Error()))
	}
	log.LogAttrs(ctx, level, r.Text, attrs...)
}
