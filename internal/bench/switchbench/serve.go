package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/internal/netns"
	"vmnet/internal/tun"
)

// serve is a bare switch of package vswitch: ports are tap:NAME, packet:NAME, socket:FD.
func serve(ctx context.Context, ports []string) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, os.Interrupt)
	defer stop()
	sw := vswitch.New(vswitch.Config{})
	defer sw.Close()
	for _, p := range ports {
		w, err := openWire(p)
		if err == nil {
			_, err = sw.AddPort(p, w, vswitch.PortConfig{})
		}
		if err != nil {
			return fmt.Errorf("port %s: %w", p, err)
		}
	}
	<-ctx.Done()
	return nil
}

func openWire(p string) (*vswitch.Wire, error) {
	kind, name, _ := strings.Cut(p, ":")
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	switch kind {
	case "tap":
		tap, err := tun.Create(ns, name, false)
		if err != nil {
			return nil, err
		}
		defer tap.Close()
		return vswitch.OpenTap(tap.Queues()...)
	case "packet":
		return vswitch.OpenPacket(ns, name)
	case "socket":
		fd, err := strconv.Atoi(name)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		return vswitch.OpenSocket(f, 1500)
	}
	return nil, fmt.Errorf("want tap:NAME, packet:NAME or socket:FD")
}
