package vhostuser

import "vmnet/bridge/vswitch/offload"

// Features of virtio-net devices (virtio 1.2, 5.1.3 and 6), as bits of a word. HOST is for frames
// that the guest sends, GUEST for those that it takes.
const (
	featureCSum          = 1 << 0
	featureGuestCSum     = 1 << 1
	featureMTU           = 1 << 3
	featureGuestTSO4     = 1 << 7
	featureGuestTSO6     = 1 << 8
	featureGuestECN      = 1 << 9
	featureHostTSO4      = 1 << 11
	featureHostTSO6      = 1 << 12
	featureHostECN       = 1 << 13
	featureMergeable     = 1 << 15
	featureStatus        = 1 << 16
	featureControl       = 1 << 17
	featureControlRX     = 1 << 18
	featureGuestAnnounce = 1 << 21
	featureMQ            = 1 << 22
	featureLogAll        = 1 << 26 // VHOST_F_LOG_ALL: log writes to the guest's memory
	featureAnyLayout     = 1 << 27
	featureIndirect      = 1 << 28
	featureEventIndex    = 1 << 29
	featureProtocol      = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	featureVersion1      = 1 << 32
	featureGuestUSO4     = 1 << 54
	featureGuestUSO6     = 1 << 55
	featureHostUSO       = 1 << 56

	// offered are the features of a device with one pair of queues. The control queue, the link's
	// state and the announcements are the frontend's.
	offered = featureCSum | featureGuestCSum | featureMTU | featureGuestTSO4 | featureGuestTSO6 | featureGuestECN |
		featureHostTSO4 | featureHostTSO6 | featureHostECN | featureMergeable | featureStatus | featureControl |
		featureControlRX | featureGuestAnnounce | featureAnyLayout | featureIndirect | featureEventIndex |
		featureLogAll | featureProtocol | featureVersion1 | featureGuestUSO4 | featureGuestUSO6 | featureHostUSO
)

// Protocol features (docs/interop/vhost-user.rst), as bits of a word. There is no PAGEFAULT, so
// that QEMU refuses post-copy: memory that is still to come would keep an access waiting.
const (
	protocolMQ       = 1 << 0
	protocolLog      = 1 << 1 // VHOST_USER_PROTOCOL_F_LOG_SHMFD
	protocolRARP     = 1 << 2
	protocolReplyAck = 1 << 3
	protocolMTU      = 1 << 4
	protocolSlots    = 1 << 15

	offeredProtocol = protocolMQ | protocolLog | protocolRARP | protocolReplyAck | protocolMTU | protocolSlots
)

// Lengths of the header before each frame in the rings: struct virtio_net_hdr_v1, and struct
// virtio_net_hdr of drivers that have neither VERSION_1 nor mergeable buffers.
const (
	longHdr   = 12
	legacyHdr = offload.HeaderLen
)

func headerOf(features uint64) int {
	if features&(featureVersion1|featureMergeable) != 0 {
		return longHdr
	}
	return legacyHdr
}

// limitsOf returns what the guest takes.
func limitsOf(features uint64) offload.Limits {
	has := func(bits uint64) bool { return features&(bits|featureGuestCSum) == bits|featureGuestCSum }
	return offload.Limits{
		CSum: has(0), TSO4: has(featureGuestTSO4), TSO6: has(featureGuestTSO6), TSOECN: has(featureGuestECN),
		USO: has(featureGuestUSO4 | featureGuestUSO6), VnetHdr: offload.HeaderLen,
	}
}

// takes reports whether the guest has negotiated what a frame's vnet header asks of it.
func takes(features uint64, head []byte) bool {
	flags, kind := head[0], head[1]
	if flags&offload.NeedsCsum != 0 && features&featureGuestCSum == 0 {
		return false
	}
	var need uint64
	switch kind &^ offload.GSOECN {
	case offload.GSONone:
	case offload.GSOTCPv4:
		need = featureGuestTSO4
	case offload.GSOTCPv6:
		need = featureGuestTSO6
	default:
		need = featureGuestUSO4 | featureGuestUSO6
	}
	if kind&offload.GSOECN != 0 {
		need |= featureGuestECN
	}
	return features&need == need
}
