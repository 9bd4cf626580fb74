//go:build ignore

// Port security of one NIC: a tc filter with direct action, for ingress of a tap or egress of a
// macvtap. It is the kernel's engine of package portsec (bridge/portsec), whose verdict.go has the
// same functions with the same order of checks, and the comments that explain them. What changes
// here changes there too.
//
// `make generate` compiles it. The verifier of Linux 5.10 accepts it: its loops are bounded, and it
// calls only helpers that skbs of all program types have.

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

// The syntax of maps in BTF, as libbpf has it.
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)BPF_FUNC_skb_load_bytes;

#include "dropped.h"

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define be16(x) __builtin_bswap16(x)
#else
#define be16(x) (x)
#endif

// The checks, portsec.Checks.
enum { MAC = 1, IP = 2, ARP = 4, ND = 8, DHCP = 16, RA = 32, VLAN = 64 };
#define PAYLOAD (IP | ARP | ND | DHCP | RA)

// The reasons, portsec.Reason.
enum reason {
	PASS,
	SHORT,
	MALFORMED,
	SOURCE_MAC,
	TAGGED,
	OTHER_TYPE,
	SOURCE_IP,
	FORGED_ARP,
	FORGED_ND,
	DHCP_SERVER,
	ROUTER_ADVERT,
	FRAGMENTED,
	HEADERS,
	REASONS,
};

#define MAX_IPS 16
#define MAX_TYPES 8
#define MAX_TAGS 2
#define MAX_HEADERS 8
#define MAX_OPTIONS 16

struct range4 {
	u32 addr, mask;
};

struct range6 {
	u64 hi, lo, mask_hi, mask_lo;
};

// The NIC's configuration. Addresses and types are in network byte order.
struct settings {
	u8 mac[8]; // 6 bytes and two zeros
	u32 checks;
	u32 known; // there are own IP addresses
	u32 types, v4s, v6s;
	u16 type[MAX_TYPES];
	struct range4 v4[MAX_IPS];
	struct range6 v6[MAX_IPS];
};

// .rodata, which is frozen before the program is loaded: the verifier knows the values, and removes
// the code of checks that are off.
const volatile struct settings config = {};

// Dropped frames by reason.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, u32);
	__type(value, u64);
} drops SEC(".maps");

INLINE int on(u32 some) { return (config.checks & some) != 0; }

// load copies from the frame, and reports whether all bytes are there. The frame need not be linear.
INLINE int load(struct __sk_buff *skb, u32 at, void *to, u32 len) { return load_bytes(skb, at, to, len) == 0; }

// peek is load for the heads that each frame has, in less time if they are in the linear part. at
// and len are multiples of 4 behind the Ethernet header, which the verifier of a machine that needs
// aligned access can see.
INLINE int peek(struct __sk_buff *skb, u32 at, void *to, u32 len)
{
	const u8 *data = (const u8 *)(long)skb->data, *end = (const u8 *)(long)skb->data_end;

	if (at > 256 || data + at + len > end)
		return load(skb, at, to, len);
	const u32 *from = (const u32 *)(data + at);
	u32 *copy = to;
#pragma unroll
	for (u32 i = 0; i < len / 4; i++)
		copy[i] = from[i];
	return 1;
}

INLINE u16 get16(const u8 *p) { return (u16)p[0] << 8 | p[1]; }

// own_mac compares with the NIC's address. p need not be aligned.
INLINE int own_mac(const u8 *p)
{
	return p[0] == config.mac[0] && p[1] == config.mac[1] && p[2] == config.mac[2] && p[3] == config.mac[3] &&
	       p[4] == config.mac[4] && p[5] == config.mac[5];
}

INLINE int own4(u32 addr)
{
	for (u32 i = 0; i < MAX_IPS && i < config.v4s; i++)
		if (((addr ^ config.v4[i].addr) & config.v4[i].mask) == 0)
			return 1;
	return 0;
}

INLINE int own6(u64 hi, u64 lo)
{
	for (u32 i = 0; i < MAX_IPS && i < config.v6s; i++)
		if ((((hi ^ config.v6[i].hi) & config.v6[i].mask_hi) | ((lo ^ config.v6[i].lo) & config.v6[i].mask_lo)) == 0)
			return 1;
	return 0;
}

INLINE int is_tag(u16 type) { return type == 0x8100 || type == 0x88a8 || type == 0x9100 || type == 0x9200; }

// struct arp is a message for Ethernet and IPv4 (RFC 826), whose addresses are not aligned.
struct arp {
	u16 hardware, protocol;
	u8 hardware_len, protocol_len;
	u16 op;
	u8 sender_mac[6];
	u16 sender[2];
	u8 target_mac[6];
	u32 target;
};

INLINE enum reason arp(struct __sk_buff *skb, u32 at, int reverse)
{
	struct arp m;

	if (!on(ARP))
		return PASS;
	if (!peek(skb, at, &m, sizeof(m)))
		return SHORT;
	if (m.hardware != be16(1) || m.protocol != be16(0x0800) || m.hardware_len != 6 || m.protocol_len != 4 ||
	    !own_mac(m.sender_mac))
		return FORGED_ARP;
	u32 sender;
	__builtin_memcpy(&sender, m.sender, sizeof(sender));
	if (reverse)
		return m.op == be16(3) && sender == 0 && own_mac(m.target_mac) ? PASS : FORGED_ARP;
	if (m.op != be16(1) && m.op != be16(2))
		return FORGED_ARP;
	if (!config.known || own4(sender))
		return PASS;
	return m.op == be16(1) && sender == 0 && own4(m.target) ? PASS : FORGED_ARP; // a probe
}

struct ipv4 {
	u8 version_len, tos;
	u16 len, id, fragment;
	u8 ttl, protocol;
	u16 checksum;
	u32 src, dst;
};

INLINE int is_igmp_report(u8 type) { return type == 0x12 || type == 0x16 || type == 0x17 || type == 0x22; }

INLINE enum reason ipv4(struct __sk_buff *skb, u32 at)
{
	struct ipv4 h;
	u16 port[2] __attribute__((aligned(4)));
	u8 type;
	int first, starting = 0;

	if (!on(IP | DHCP))
		return PASS;
	if (!peek(skb, at, &h, sizeof(h)))
		return SHORT;
	u32 len = (h.version_len & 15) * 4;
	if (h.version_len >> 4 != 4 || len < sizeof(h))
		return MALFORMED;
	first = (h.fragment & be16(0x1fff)) == 0;
	at += len;
	if (skb->len < at)
		return SHORT;
	if (first && h.protocol == 17) {
		if (!peek(skb, at, port, sizeof(port)))
			return SHORT;
		if (on(DHCP) && (port[0] == be16(67) || port[1] == be16(68)))
			return DHCP_SERVER;
		starting = port[0] == be16(68) && port[1] == be16(67) && h.dst == 0xffffffff;
	} else if (first && h.protocol == 2 && h.src == 0) {
		if (!load(skb, at, &type, sizeof(type)))
			return SHORT;
		starting = is_igmp_report(type) && (*(u8 *)&h.dst & 0xf0) == 0xe0;
	}
	if (on(IP) && !own4(h.src) && !(h.src == 0 && starting && config.v4s > 0))
		return SOURCE_IP;
	return PASS;
}

struct ipv6 {
	u32 version;
	u16 len;
	u8 next, hops;
	u64 src[2], dst[2];
};

INLINE int is_extension(u8 next) { return next == 0 || next == 43 || next == 44 || next == 51 || next == 60; }

// options checks the options of a message of neighbor discovery, from at to end.
INLINE enum reason options(struct __sk_buff *skb, u32 at, u32 end)
{
	u8 o[8];

	for (int i = 0; i < MAX_OPTIONS; i++) {
		if (at >= end)
			return PASS;
		if (end < at + 2 || !load(skb, at, o, 2))
			return SHORT;
		u32 len = o[1] * 8;
		if (len == 0)
			return FORGED_ND;
		if (o[0] == 1 || o[0] == 2) {
			if (len != 8 || end < at + 8 || !load(skb, at, o, 8) || !own_mac(o + 2))
				return FORGED_ND;
		}
		at += len;
	}
	return at >= end ? PASS : FORGED_ND;
}

// neighbor checks a message of neighbor discovery, of type 133 to 136.
INLINE enum reason neighbor(struct __sk_buff *skb, u32 at, u32 end, u8 type, int own, int none)
{
	u64 target[2];
	u32 len = type == 133 ? 8 : type == 134 ? 16 : 24;

	if (end < at + len)
		return SHORT;
	if (config.known) {
		if (!own && !(none && (type == 133 || type == 135)))
			return FORGED_ND;
		if (type == 136 || (type == 135 && none)) {
			if (!load(skb, at + 8, target, sizeof(target)))
				return SHORT;
			if (!own6(target[0], target[1]))
				return FORGED_ND;
		}
	}
	return options(skb, at + len, end);
}

INLINE enum reason source6(int own, int starting)
{
	return on(IP) && !own && !(starting && config.v6s > 0) ? SOURCE_IP : PASS;
}

INLINE enum reason icmp6(struct __sk_buff *skb, u32 at, u32 end, int own, int none, int fragment)
{
	enum reason why;
	u8 type;

	if (!load(skb, at, &type, sizeof(type)))
		return SHORT;
	if (type < 133 || type > 137)
		return source6(own, none && !fragment && (type == 131 || type == 132 || type == 143));
	if (fragment && on(ND | RA))
		return FRAGMENTED;
	if (on(RA) && (type == 134 || type == 137))
		return ROUTER_ADVERT;
	if (on(ND) && type != 137) {
		why = neighbor(skb, at, end, type, own, none);
		if (why != PASS)
			return why;
	}
	return source6(own, none && (type == 133 || type == 135));
}

INLINE enum reason ipv6(struct __sk_buff *skb, u32 at)
{
	struct ipv6 h;
	u16 port[2] __attribute__((aligned(4)));
	u8 x[8];
	int own, none, fragment = 0;

	if (!on(IP | ND | DHCP | RA))
		return PASS;
	if (!peek(skb, at, &h, sizeof(h)))
		return SHORT;
	if (*(u8 *)&h.version >> 4 != 6)
		return MALFORMED;
	own = own6(h.src[0], h.src[1]);
	none = (h.src[0] | h.src[1]) == 0;
	at += sizeof(h);
	u32 end = at + be16(h.len);
	if (end > skb->len)
		end = skb->len;
	u8 next = h.next;
	for (int i = 0; i < MAX_HEADERS && is_extension(next); i++) {
		if (!load(skb, at, x, sizeof(x)))
			return SHORT;
		if (next == 44) {
			if (is_extension(x[0]))
				return FRAGMENTED;
			if (get16(x + 2) & 0xfff8)
				return source6(own, 0);
			fragment = 1;
			at += 8;
		} else if (next == 51) {
			at += (x[1] + 2) * 4;
		} else {
			at += (x[1] + 1) * 8;
		}
		next = x[0];
	}
	if (is_extension(next))
		return HEADERS;
	if (next == 58)
		return icmp6(skb, at, end, own, none, fragment);
	if (next == 17) {
		if (!peek(skb, at, port, sizeof(port)))
			return SHORT;
		if (on(DHCP) && (port[0] == be16(547) || port[1] == be16(546)))
			return DHCP_SERVER;
	}
	return source6(own, 0);
}

INLINE enum reason verdict(struct __sk_buff *skb)
{
	const u8 *data = (const u8 *)(long)skb->data, *end = (const u8 *)(long)skb->data_end;
	u32 at = 14, tags = 0;
	u8 tag[4];

	if (data + 14 > end) // drivers have the Ethernet header in the linear part
		return SHORT;
	if (on(MAC) && !own_mac(data + 6))
		return SOURCE_MAC;
	if (!on(VLAN | PAYLOAD))
		return PASS;
	u16 type = get16(data + 12);
	if (skb->vlan_present) { // the outermost tag, which the kernel has taken out of the frame
		if (on(VLAN))
			return TAGGED;
		tags++;
	}
	for (int i = 0; i <= MAX_TAGS && is_tag(type); i++) {
		if (on(VLAN) || tags == MAX_TAGS)
			return TAGGED;
		if (!load(skb, at, tag, sizeof(tag)))
			return SHORT;
		type = get16(tag + 2);
		at += 4;
		tags++;
	}
	if (!on(PAYLOAD))
		return PASS;
	if (type == 0x0800)
		return ipv4(skb, at);
	if (type == 0x86dd)
		return ipv6(skb, at);
	if (type == 0x0806 || type == 0x8035)
		return arp(skb, at, type == 0x8035);
	for (u32 i = 0; i < MAX_TYPES && i < config.types; i++)
		if (type == be16(config.type[i]))
			return PASS;
	return OTHER_TYPE;
}

// The name is what filters are recognized by (filter in attach.go). A frame that passes goes on to
// filters of others.
SEC("tc") int vmnet_guard(struct __sk_buff *skb)
{
	u32 why = verdict(skb);
	u64 *count;

	if (why == PASS)
		return TC_ACT_UNSPEC;
	count = map_lookup(&drops, &why);
	if (count)
		(*count)++;
	captured(skb, why, 0);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
