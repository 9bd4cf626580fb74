//go:build ignore

// The fast path of one packet port of a userspace switch. A packet socket gets each frame before tc
// does (__netif_receive_skb_core in net/core/dev.c), so two programs share the work: the socket's
// filter decides, and leaves out of the socket what the fast path takes; the program at the device's
// TCX hook, which the same processor runs next for the same frame, forwards it. Nothing decides
// twice, so no frame is lost or sent twice while the switch changes the table.
//
// `make generate` compiles it. It needs Linux 6.6, for TCX.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

// The syntax of maps in BTF, as libbpf has it.
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static long (*redirect)(u32 device, u64 flags) = (void *)BPF_FUNC_redirect;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define be16(x) __builtin_bswap16(x)
#else
#define be16(x) (x)
#endif

#define MAX_ADDRESSES 4096
#define MAX_TARGETS 64
#define MAX_PROTOCOLS 8
#define TAG_LEN 4

// The network namespace of the device, and the IP protocols whose packets the socket leaves out, since
// the port's lane receives them.
const volatile struct own {
	u64 netns;
	u32 left_out;
	u8 protocol[MAX_PROTOCOLS];
} own = {};

// An address of a station behind this port, or of one that frames of this port may be forwarded to.
struct key {
	u8 mac[6];
	u16 is_target;
};

// What the switch says of an address, and whether it was seen since the switch has looked. All but
// seen are of targets.
struct address {
	u32 seen;
	u32 target; // in targets and counters
	u32 mtu;
	u32 untagged; // only frames without a tag
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ADDRESSES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct address);
} addresses SEC(".maps");

// The device of a port, and where that is. Who opens a port makes a map with this, which nobody can
// change. A switch that has the maps of its ports, but no privilege, can have frames leave by those
// devices, and by no others.
struct place {
	u64 netns;
	u32 device, zero;
};

struct place_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(u32));
	__uint(value_size, sizeof(struct place)); // clang 14 writes no type of it here
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_TARGETS);
	__type(key, u32);
	__array(values, struct place_map);
} targets SEC(".maps");

// Forwarded frames, by target.
struct counter {
	u64 frames, bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_TARGETS);
	__type(key, u32);
	__type(value, struct counter);
} counters SEC(".maps");

// What the filter has decided for the frame that comes to the TCX hook next. waits is set from a
// decision to forward until the hook has run: if it stays set, the hook is gone.
struct decision {
	u32 device, target, length, waits;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct decision);
} decisions SEC(".maps");

// headers returns the length of a super-frame's IP and transport headers, or 0 if it does not know.
INLINE u32 headers(struct __sk_buff *skb, u16 type)
{
	u32 ip, at;
	u8 first, protocol;

	if (load_bytes(skb, ETH_HLEN, &first, 1))
		return 0;
	if (type == be16(ETH_P_IP)) {
		ip = (first & 15) * 4;
		at = 9;
	} else if (type == be16(ETH_P_IPV6)) {
		ip = 40;
		at = 6;
	} else {
		return 0;
	}
	if (load_bytes(skb, ETH_HLEN + at, &protocol, 1))
		return 0;
	if (protocol == IPPROTO_UDP)
		return ip + 8;
	if (protocol != IPPROTO_TCP || load_bytes(skb, ETH_HLEN + ip + 12, &first, 1))
		return 0;
	return ip + (first >> 4) * 4;
}

// fits reports whether a frame, or each segment of a super-frame but a tunnel's, fits the target's MTU.
INLINE int fits(struct __sk_buff *skb, u16 type, u32 mtu)
{
	u32 size = skb->gso_size, length;

	if (size == 0)
		return skb->len <= mtu + ETH_HLEN;
	length = headers(skb, type);
	return length != 0 && length + size <= mtu;
}

// device_of returns the device of a target, or 0 if it has none here.
INLINE u32 device_of(u32 target)
{
	u32 zero = 0;
	void *map = map_lookup(&targets, &target);
	struct place *at = map ? map_lookup(map, &zero) : 0;

	return at && at->netns == own.netns ? at->device : 0;
}

// decide decides whether to forward a frame. Otherwise the switch is to handle it.
INLINE void decide(struct __sk_buff *skb, struct decision *d)
{
	u16 head[ETH_HLEN / 2];
	struct key key;
	struct address *from, *to;

	if (load_bytes(skb, 0, head, ETH_HLEN))
		return;
	__builtin_memcpy(key.mac, head, 6);
	key.is_target = 1;
	to = map_lookup(&addresses, &key);
	if (!to || (to->untagged && skb->vlan_present) || !fits(skb, head[6], to->mtu))
		return;
	__builtin_memcpy(key.mac, head + 3, 6);
	key.is_target = 0;
	from = map_lookup(&addresses, &key);
	if (!from)
		return;
	d->device = device_of(to->target);
	if (!d->device)
		return;
	d->target = to->target;
	d->length = skb->len;
	d->waits = 1;
	if (!from->seen)
		from->seen = 1;
	if (!to->seen)
		to->seen = 1;
}

// is_left_out reports whether the port's lane receives a frame.
INLINE int is_left_out(struct __sk_buff *skb)
{
	u32 at;
	u8 protocol;

	if (own.left_out == 0)
		return 0;
	if (skb->protocol == be16(ETH_P_IP))
		at = 9;
	else if (skb->protocol == be16(ETH_P_IPV6))
		at = 6;
	else
		return 0;
	if (load_bytes(skb, ETH_HLEN + at, &protocol, 1))
		return 0;
	for (u32 i = 0; i < MAX_PROTOCOLS && i < own.left_out; i++)
		if (protocol == own.protocol[i])
			return 1;
	return 0;
}

// arrives is the filter of the packet socket. It returns how many bytes the socket gets.
SEC("socket") int vmnet_arrives(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct decision *d = map_lookup(&decisions, &zero);

	if (d) {
		d->device = 0;
		if (!d->waits)
			decide(skb, d);
		if (d->device)
			return 0;
	}
	return is_left_out(skb) ? 0 : -1;
}

// forwards is the program at the TCX hook.
SEC("tc") int vmnet_forwards(struct __sk_buff *skb)
{
	u32 zero = 0, device, target;
	struct decision *d = map_lookup(&decisions, &zero);
	struct counter *c;

	if (!d)
		return TC_ACT_UNSPEC;
	device = d->device;
	d->device = 0;
	d->waits = 0;
	if (device == 0 || d->length != skb->len) // the filter has not seen this one
		return TC_ACT_UNSPEC;
	target = d->target;
	c = map_lookup(&counters, &target);
	if (c) {
		c->frames++;
		c->bytes += skb->len + (skb->vlan_present ? TAG_LEN : 0);
	}
	return redirect(device, 0);
}

char LICENSE[] SEC("license") = "Apache-2.0";
