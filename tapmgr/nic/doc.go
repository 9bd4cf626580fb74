// Package nic describes a guest's NIC: what is asked for (Spec), what the host remembers of it
// (Record, in the alias of its link), what is shown of it (NIC), and its names. It is data alone:
// nothing here looks into the kernel or a VMM.
package nic
