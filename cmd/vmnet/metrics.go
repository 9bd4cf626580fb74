package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/version"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/metrics"
	"vmnet/tapmgr"
)

func (a *app) metricsCommand() *cobra.Command {
	file := ""
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print the NICs' counters for Prometheus",
		Long: `Print states and counters of all NICs in the text format of Prometheus: the state of each
NIC, what came from the guest and went to it, what port security or a userspace switch has dropped
and why, and the CPU time of vhost threads. With --write, write them to a file for the textfile
collector of node_exporter, which is replaced as a whole. vmnet watch --listen serves the same over
HTTP.

A NIC's series have the labels guest, nic and interface; vmnet_nic_info has its type, source,
network, MAC and model. Where two NICs have the same three labels, the one that only a user's
processes claim is left out.`,
		Example: `  vmnet metrics
  vmnet metrics --write /var/lib/prometheus/node-exporter/vmnet.prom`,
		Args: noArgs(),
	}
	cmd.Flags().StringVar(&file, "write", "", "replace `FILE`, whose name should end in .prom")
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		if file != "" && *format == "json" {
			return usagef("-o json and --write exclude each other: the file has the text format")
		}
		return a.withManager(func(m *tapmgr.Manager) error {
			all, err := collectMetrics(cmd.Context(), m)
			switch {
			case err != nil:
				return err
			case *format == "json":
				return a.printJSON(all)
			case file != "":
				return writeMetrics(file, all)
			}
			return outputError(metrics.Write(a.out, all))
		})
	})
	return cmd
}

// collectMetrics returns all metrics. With an error, it returns those that say so.
func collectMetrics(ctx context.Context, m *tapmgr.Manager) ([]metrics.Family, error) {
	start := time.Now()
	nics, err := m.Survey(ctx, "", tapmgr.Look{Addresses: true, Drops: true})
	return append(metrics.About(version.Get().Version, time.Since(start), err != nil), nicMetrics(nics)...), err
}

// nicMetrics returns the metrics of NICs, with the CPU time of their vhost threads.
func nicMetrics(nics []tapmgr.Sighting) []metrics.Family {
	var pids []int
	for i := range nics {
		if pid := nics[i].PID; pid != 0 && nics[i].Vhost == "on" && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return metrics.NICs(nics, procview.VhostTimes(pids))
}

// metricsNow is collectMetrics of a Manager of its own, which asks the switches that run now, and
// says nothing on stderr.
func (a *app) metricsNow(ctx context.Context) (all []metrics.Family, err error) {
	start := time.Now()
	err = tapmgr.In(a.netns, func(m *tapmgr.Manager) error {
		m.AskSwitches, m.Libvirt = true, a.libvirt
		var unseen error
		if m.Switches, unseen = control.Running(); unseen != nil {
			return unseen
		}
		m.AskLibvirt()
		all, err = collectMetrics(ctx, m)
		return err
	})
	if all == nil {
		all = metrics.About(version.Get().Version, time.Since(start), true)
	}
	return all, err
}

// writeMetrics replaces a file, so that a reader sees the former one or the new one.
func writeMetrics(path string, all []metrics.Family) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".vmnet-metrics-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err = metrics.Write(f, all); err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// serveMetrics serves metrics until stop is called; nothing if listen is empty.
func (a *app) serveMetrics(ctx context.Context, listen string, log *slog.Logger) (stop func(), err error) {
	if listen == "" {
		return func() {}, nil
	}
	at, err := metrics.ParseAddress(listen)
	if err != nil {
		return nil, err
	}
	l, err := at.Listen()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := metrics.Serve(ctx, l, func(ctx context.Context) []metrics.Family {
			all, err := a.metricsNow(ctx)
			if err != nil && ctx.Err() == nil {
				log.WarnContext(ctx, "metrics cannot be collected", "error", err)
			}
			return all
		})
		if err != nil {
			log.WarnContext(ctx, "metrics are not served any longer", "error", err)
		}
	}()
	log.InfoContext(ctx, "metrics are served", "at", l.Addr().String())
	return func() { cancel(); <-done }, nil
}
