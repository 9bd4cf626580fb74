// Package domainxml reads and writes the NIC-related parts of domain XML. It makes no calls:
// package libvirt is the client that gets and sets this text.
//
// The format is libvirt's formatdomain (https://libvirt.org/formatdomain.html) as of libvirt 9.0.
// Elements and attributes that are not listed here are skipped.
package domainxml
