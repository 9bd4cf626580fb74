package agent

import "time"

// The methods that the guest serves.
const (
	MethodHello    = "hello"
	MethodResume   = "resume"
	MethodExec     = "exec"
	MethodStream   = "stream"
	MethodLinks    = "links"
	MethodLinkSet  = "link-set"
	MethodAddr     = "addr"
	MethodRoute    = "route"
	MethodWaitNIC  = "wait-nic"
	MethodPing     = "ping"
	MethodServe    = "serve"
	MethodUnserve  = "unserve"
	MethodTCPSend  = "tcp-send"
	MethodUDPSend  = "udp-send"
	MethodPowerOff = "poweroff"
)

// Info describes the guest.
type Info struct {
	Kernel string        `json:"kernel"`
	Uptime time.Duration `json:"uptime"`
}

// Resume makes a guest that begins in the state of another one differ from it.
type Resume struct {
	Hostname string    `json:"hostname,omitempty"`
	Now      time.Time `json:"now"`
	Seed     []byte    `json:"seed"`             // of its random numbers
	Rescan   bool      `json:"rescan,omitempty"` // it may have more devices
}

// Command is a program to run in the guest.
type Command struct {
	// Argv is the program and its arguments; what busybox has is found by name.
	Argv []string `json:"argv"`
	// Dir is the working directory; empty means the root.
	Dir string `json:"dir,omitempty"`
	// Env is added to the environment of the guest's programs: "A=1".
	Env   []string `json:"env,omitempty"`
	Stdin string   `json:"stdin,omitempty"`
}

// MaxOutput bounds each of a command's two outputs, in bytes; the rest is dropped.
const MaxOutput = 512 << 10

// Output is the outcome of a command that was started.
type Output struct {
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
	// Code is the exit status; -1 if a signal ended the command.
	Code int `json:"code"`
}

// Part is a piece of a running command's output.
type Part struct {
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
}

// Link is a network interface of the guest.
type Link struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
	MAC   string `json:"mac"`
	// MTU in bytes.
	MTU     int  `json:"mtu"`
	Up      bool `json:"up"`
	Carrier bool `json:"carrier"`
	// Driver and PCI ("0000:00:03.0") are empty if the link is not a PCI device.
	Driver string `json:"driver,omitempty"`
	PCI    string `json:"pci,omitempty"`
	// RxQueues and TxQueues count the queues in use.
	RxQueues int      `json:"rx_queues"`
	TxQueues int      `json:"tx_queues"`
	Addrs    []string `json:"addrs,omitempty"`
	Counters Counters `json:"counters"`
}

// Counters are those of struct rtnl_link_stats64 (include/uapi/linux/if_link.h).
type Counters struct {
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	RxDropped uint64 `json:"rx_dropped"`
	RxErrors  uint64 `json:"rx_errors"`
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxDropped uint64 `json:"tx_dropped"`
	TxErrors  uint64 `json:"tx_errors"`
}

// LinkSet changes a link; fields that are nil or empty leave it as it is.
type LinkSet struct {
	Link string `json:"link"`
	Up   *bool  `json:"up,omitempty"`
	// MTU in bytes.
	MTU int    `json:"mtu,omitempty"`
	MAC string `json:"mac,omitempty"`
}

// AddrChange adds an address (CIDR) to a link, or removes it.
type AddrChange struct {
	Link   string `json:"link"`
	Addr   string `json:"addr"`
	Remove bool   `json:"remove,omitempty"`
}

// Route is a route to a destination ("default" or CIDR) through a gateway, a link or both.
type Route struct {
	To   string `json:"to"`
	Via  string `json:"via,omitempty"`
	Link string `json:"link,omitempty"`
}

// NICWait waits until a NIC exists, or until it is gone.
type NICWait struct {
	MAC  string `json:"mac"`
	Gone bool   `json:"gone,omitempty"`
}

// Service is a server to start or end: "tcp" counts and hashes what it receives, "udp" echoes.
type Service struct {
	Proto string `json:"proto"`
	// Addr is "ip:port"; port 0 lets the guest choose. The reply has the actual one.
	Addr string `json:"addr"`
}

// Send sends traffic to such a server.
type Send struct {
	// To is "ip:port".
	To string `json:"to"`
	// Bytes is the length of a TCP stream.
	Bytes int64 `json:"bytes,omitempty"`
	// Count and Size (bytes) are the number and the payload of UDP datagrams.
	Count int `json:"count,omitempty"`
	Size  int `json:"size,omitempty"`
}
