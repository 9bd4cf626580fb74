// Package tapmgr gives guests their NICs: it makes the tap, puts it on its
// bridge, hands its queues to the VMM, and takes all of that away again.
//
// The kernel is the only database. What a NIC should be stands in the alias of
// its link (IFLA_IFALIAS); what it is, is read from the kernel and the VMM each
// time. A device lives as long as its VMM holds its fds, so nothing outlives a guest.
//
// The VMM's monitor is the lock of a guest: it serves one client at a time, and
// is connected to before the first device is made and until the last step is done.
package tapmgr
