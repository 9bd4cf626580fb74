//go:build ignore

// What reaches the guest of one NIC (package inbound in bridge/inbound): answers to what it has
// asked, and what rules allow. Two tc filters with direct action share their maps: vmnet_asked sees
// what the guest sends and remembers its flows, vmnet_inbound drops what is neither an answer nor
// allowed. Only the guest's own frames make or prolong a flow, so nobody else can fill the map.
//
// `make generate` compiles it. The verifier of Linux 5.10 accepts it: its loops are bounded, and it
// reads frames by a helper only.

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
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static u64 (*now)(void) = (void *)BPF_FUNC_ktime_get_ns;

#include "dropped.h"

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define be16(x) __builtin_bswap16(x)
#define be32(x) __builtin_bswap32(x)
#else
#define be16(x) (x)
#define be32(x) (x)
#endif

#define MAX_RULES 16
#define MAX_TYPES 8
#define MAX_TAGS 2
#define MAX_HEADERS 8
#define MAX_FLOWS 32768
#define MAX_FRAGMENTED 1024

#define SECOND 1000000000ULL

// How long an answer is waited for after the guest's last frame of the flow. An established TCP
// connection is remembered as long as Linux does it (nf_conntrack_tcp_timeout_established), UDP as
// long as RFC 4787 recommends, echoes as RFC 5508 demands.
#define TCP_OPENING (120 * SECOND)
#define TCP_ESTABLISHED (432000 * SECOND)
#define TCP_CLOSING (120 * SECOND)
#define TCP_RESET (10 * SECOND)
#define UDP_IDLE (300 * SECOND)
#define ECHO_IDLE (60 * SECOND)
#define OTHER_IDLE (600 * SECOND)
#define FRAGMENT_IDLE (30 * SECOND)

enum { ICMP = 1, IGMP = 2, TCP = 6, UDP = 17, DCCP = 33, ICMP6 = 58, SCTP = 132, UDPLITE = 136, OTHER = 255 };

// A rule lets frames in that ask. Addresses are in network byte order, those of IPv4 mapped
// (::ffff:0:0/96); ports are in the order of the machine.
struct rule {
	u32 from[4], mask[4];
	u16 first, last; // local ports
	u8 protocol;	 // 0: any; ICMP: echo requests of both families
	u8 family;	 // 4 or 6; 0: both
	u8 zero[2];
};

// The NIC's configuration. Types are in network byte order.
struct settings {
	u32 rules, types;
	u16 type[MAX_TYPES]; // further EtherTypes that pass
	struct rule rule[MAX_RULES];
};

// .rodata, which is frozen before the program is loaded.
const volatile struct settings config = {};

// A flow is between the guest and a remote host, in the VLANs of its tags. Of an echo, local_port
// is the identifier. Ports are in the order of the machine, addresses as in a rule.
struct flow {
	u32 local[4], remote[4];
	u16 local_port, remote_port;
	u16 vlan, inner_vlan;
	u8 family, protocol; // family: 4 or 6
	u16 zero;
};

struct waiting {
	u64 until;
	u64 closing; // of TCP: the guest has closed its side
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FLOWS);
	__type(key, struct flow);
	__type(value, struct waiting);
} flows SEC(".maps");

// Packets whose first fragment was let in, as flows with their identification in place of ports.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FRAGMENTED);
	__type(key, struct flow);
	__type(value, u64);
} fragments SEC(".maps");

// Dropped frames.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} refused SEC(".maps");

enum part { WHOLE, FIRST, LATER };

// A packet is what decides about a frame.
struct packet {
	struct flow flow;
	u32 at; // of the transport header
	u32 id; // of a fragment
	u8 part, type, flags;
};

INLINE int load(struct __sk_buff *skb, u32 at, void *to, u32 len) { return load_bytes(skb, at, to, len) == 0; }

INLINE u16 get16(const u8 *p) { return (u16)p[0] << 8 | p[1]; }

INLINE int is_tag(u16 type) { return type == 0x8100 || type == 0x88a8 || type == 0x9100 || type == 0x9200; }

INLINE int is_extension(u8 next) { return next == 0 || next == 43 || next == 44 || next == 51 || next == 60; }

INLINE void map4(u32 to[4], u32 addr)
{
	to[0] = to[1] = 0;
	to[2] = be32(0xffff);
	to[3] = addr;
}

INLINE int ipv4(struct __sk_buff *skb, u32 at, struct packet *p, int from_guest)
{
	struct {
		u8 version_len, tos;
		u16 len, id, fragment;
		u8 ttl, protocol;
		u16 checksum;
		u32 src, dst;
	} h;

	if (!load(skb, at, &h, sizeof(h)))
		return 0;
	u32 len = (h.version_len & 15) * 4;
	if (h.version_len >> 4 != 4 || len < sizeof(h))
		return 0;
	map4(p->flow.local, from_guest ? h.src : h.dst);
	map4(p->flow.remote, from_guest ? h.dst : h.src);
	p->flow.family = 4;
	p->flow.protocol = h.protocol;
	p->id = be16(h.id);
	p->part = h.fragment & be16(0x1fff) ? LATER : h.fragment & be16(0x2000) ? FIRST : WHOLE;
	p->at = at + len;
	return 1;
}

INLINE int ipv6(struct __sk_buff *skb, u32 at, struct packet *p, int from_guest)
{
	struct {
		u32 version;
		u16 len;
		u8 next, hops;
		u32 src[4], dst[4];
	} h;
	u8 x[8];

	if (!load(skb, at, &h, sizeof(h)) || *(u8 *)&h.version >> 4 != 6)
		return 0;
	__builtin_memcpy(p->flow.local, from_guest ? h.src : h.dst, 16);
	__builtin_memcpy(p->flow.remote, from_guest ? h.dst : h.src, 16);
	p->flow.family = 6;
	p->part = WHOLE;
	at += sizeof(h);
	u8 next = h.next;
	for (int i = 0; i < MAX_HEADERS && is_extension(next) && p->part != LATER; i++) {
		if (!load(skb, at, x, sizeof(x)))
			return 0;
		next = x[0];
		if (h.next == 44) {
			u16 offset = get16(x + 2);
			p->part = offset & 0xfff8 ? LATER : offset & 1 ? FIRST : WHOLE;
			p->id = (u32)get16(x + 4) << 16 | get16(x + 6);
			at += 8;
		} else if (h.next == 51) {
			at += (x[1] + 2) * 4;
		} else {
			at += (x[1] + 1) * 8;
		}
		h.next = next;
	}
	if (p->part != LATER && is_extension(next))
		return 0;
	p->flow.protocol = next;
	p->at = at;
	return 1;
}

// transport reads the head of what an IP packet carries. from_guest says in which direction the
// packet goes.
INLINE int transport(struct __sk_buff *skb, struct packet *p, int from_guest)
{
	u8 b[8];

	switch (p->flow.protocol) {
	case TCP:
	case UDP:
	case DCCP:
	case SCTP:
	case UDPLITE:
		if (!load(skb, p->at, b, 4))
			return 0;
		p->flow.local_port = get16(from_guest ? b : b + 2);
		p->flow.remote_port = get16(from_guest ? b + 2 : b);
		return 1;
	case ICMP:
	case ICMP6:
		if (!load(skb, p->at, b, 8))
			return 0;
		p->type = b[0];
		if (p->flow.protocol == ICMP ? b[0] == 0 || b[0] == 8 : b[0] == 128 || b[0] == 129)
			p->flow.local_port = get16(b + 4);
		return 1;
	case IGMP:
		return load(skb, p->at, &p->type, 1);
	}
	return 1;
}

// parse reads the packet of that EtherType at that place. It reports whether the packet is one of
// IP, with all that decides about it.
INLINE int parse(struct __sk_buff *skb, u16 type, u32 at, struct packet *p, int from_guest)
{
	if (type == 0x0800) {
		if (!ipv4(skb, at, p, from_guest))
			return 0;
	} else if (type != 0x86dd || !ipv6(skb, at, p, from_guest)) {
		return 0;
	}
	return p->part == LATER || transport(skb, p, from_guest);
}

// ethernet reads the VLAN tags, and returns the EtherType behind them and its place; 0 for none.
INLINE u16 ethernet(struct __sk_buff *skb, u32 *at, struct flow *f)
{
	u8 b[4];
	u32 tags = 0;

	if (!load(skb, 12, b, 2))
		return 0;
	u16 type = get16(b);
	*at = 14;
	if (skb->vlan_present) { // the outermost tag, which the kernel has taken out of the frame
		f->vlan = skb->vlan_tci & 0xfff;
		tags++;
	}
	for (int i = 0; i < MAX_TAGS && is_tag(type); i++) {
		if (tags == MAX_TAGS || !load(skb, *at, b, 4))
			return 0;
		if (tags++ == 0)
			f->vlan = get16(b) & 0xfff;
		else
			f->inner_vlan = get16(b) & 0xfff;
		type = get16(b + 2);
		*at += 4;
	}
	return is_tag(type) ? 0 : type;
}

// allowed reports whether a rule lets a frame of that protocol in.
INLINE int allowed(const struct flow *f, u8 protocol)
{
	for (u32 i = 0; i < MAX_RULES && i < config.rules; i++) {
		const volatile struct rule *r = &config.rule[i];
		u32 differ = 0;

		for (u32 n = 0; n < 4; n++)
			differ |= (f->remote[n] ^ r->from[n]) & r->mask[n];
		if (differ != 0 || (r->protocol != 0 && r->protocol != protocol) || (r->family != 0 && r->family != f->family))
			continue;
		if (f->local_port >= r->first && f->local_port <= r->last)
			return 1;
	}
	return 0;
}

// widen makes one flow of what DHCP asks by broadcast or multicast and what the server answers from
// its own address.
INLINE void widen(struct flow *f)
{
	if (f->protocol != UDP)
		return;
	if ((f->local_port == 68 && f->remote_port == 67) || (f->local_port == 546 && f->remote_port == 547)) {
		__builtin_memset(f->local, 0, sizeof(f->local));
		__builtin_memset(f->remote, 0, sizeof(f->remote));
	}
}

INLINE int is_answer(struct flow *f)
{
	struct waiting *w;

	widen(f);
	w = map_lookup(&flows, f);
	return w && w->until > now();
}

// refers reports whether an ICMP error is about a packet that the guest may have sent: an answer to
// what was let in, or a question.
INLINE int refers(struct __sk_buff *skb, struct packet *p)
{
	struct packet inner = {};

	inner.flow.vlan = p->flow.vlan;
	inner.flow.inner_vlan = p->flow.inner_vlan;
	if (!parse(skb, p->flow.family == 4 ? 0x0800 : 0x86dd, p->at + 8, &inner, 1) || inner.part == LATER)
		return 0;
	u8 protocol = inner.flow.protocol;
	if (protocol == ICMP || protocol == ICMP6) {
		if (inner.type == 0 || inner.type == 129) // the guest's answer to an echo request
			return allowed(&inner.flow, ICMP);
		protocol = OTHER;
	}
	return allowed(&inner.flow, protocol) || is_answer(&inner.flow);
}

// may_enter decides about a packet that is no later fragment.
INLINE int may_enter(struct __sk_buff *skb, struct packet *p)
{
	u8 type = p->type, protocol = p->flow.protocol;
	int answers = 1;

	if (protocol == ICMP) {
		if (type == 3 || type == 11 || type == 12)
			return refers(skb, p);
		protocol = type == 8 ? ICMP : OTHER;
		answers = type == 0;
	} else if (protocol == ICMP6) {
		// Queries of multicast listeners, router advertisements, neighbors: a host does not work
		// without them. Their senders are on the link.
		if (type == 130 || (type >= 134 && type <= 136))
			return p->part == WHOLE;
		if (type >= 1 && type <= 4)
			return refers(skb, p);
		protocol = type == 128 ? ICMP : OTHER;
		answers = type == 129;
	} else if (protocol == IGMP) {
		if (type == 0x11) // a query
			return 1;
		answers = 0;
	}
	return allowed(&p->flow, protocol) || (answers && is_answer(&p->flow));
}

INLINE void as_fragment(struct packet *p)
{
	p->flow.local_port = p->id >> 16;
	p->flow.remote_port = p->id;
	if (p->flow.family == 6)
		p->flow.protocol = 0; // which is not part of the identification
}

INLINE int enters(struct __sk_buff *skb)
{
	struct packet p = {};
	u64 until, *known;
	u32 at;

	u16 type = ethernet(skb, &at, &p.flow);
	if (type == 0x0806 || type == 0x8035)
		return 1;
	for (u32 i = 0; i < MAX_TYPES && i < config.types; i++)
		if (type == be16(config.type[i]))
			return 1;
	if (!parse(skb, type, at, &p, 0))
		return 0;
	if (p.part == LATER) {
		as_fragment(&p);
		known = map_lookup(&fragments, &p.flow);
		return known && *known > now();
	}
	struct flow key = p.flow;
	if (!may_enter(skb, &p))
		return 0;
	if (p.part == FIRST) {
		p.flow = key; // which may_enter may have widened
		as_fragment(&p);
		until = now() + FRAGMENT_IDLE;
		map_update(&fragments, &p.flow, &until, BPF_ANY);
	}
	return 1;
}

// The names are what filters are recognized by. What passes goes on to filters of others.
SEC("tc") int vmnet_inbound(struct __sk_buff *skb)
{
	u32 zero = 0;
	u64 *count;

	if (enters(skb))
		return TC_ACT_UNSPEC;
	count = map_lookup(&refused, &zero);
	if (count)
		(*count)++;
	captured(skb, 0, 0);
	return TC_ACT_SHOT;
}

// patience returns how long an answer to the packet is waited for.
INLINE u64 patience(struct __sk_buff *skb, struct packet *p, u64 *closing)
{
	u8 flags;

	switch (p->flow.protocol) {
	case TCP:
		if (!load(skb, p->at + 13, &flags, 1))
			return 0;
		if ((flags & 0x12) == 0x02) // SYN without ACK
			*closing = 0;
		if (flags & 0x05) // FIN or RST
			*closing = 1;
		if (flags & 0x04)
			return TCP_RESET;
		if (*closing)
			return TCP_CLOSING;
		return flags & 0x02 ? TCP_OPENING : TCP_ESTABLISHED;
	case UDP:
	case UDPLITE:
		return UDP_IDLE;
	case ICMP:
		return p->type == 8 ? ECHO_IDLE : 0;
	case ICMP6:
		return p->type == 128 ? ECHO_IDLE : 0;
	case IGMP:
		return 0;
	}
	return OTHER_IDLE;
}

SEC("tc") int vmnet_asked(struct __sk_buff *skb)
{
	struct packet p = {};
	struct waiting new = {}, *old;
	u32 at;

	u16 type = ethernet(skb, &at, &p.flow);
	if (!parse(skb, type, at, &p, 1) || p.part == LATER)
		return TC_ACT_UNSPEC;
	u8 protocol = p.flow.protocol;
	if (protocol != ICMP && protocol != ICMP6 && allowed(&p.flow, protocol))
		return TC_ACT_UNSPEC; // the other side needs no leave to answer
	widen(&p.flow);
	old = map_lookup(&flows, &p.flow);
	if (old)
		new.closing = old->closing;
	u64 wait = patience(skb, &p, &new.closing);
	if (wait == 0)
		return TC_ACT_UNSPEC;
	new.until = now() + wait;
	// In a flow of many frames most change nothing.
	if (old && old->closing == new.closing && old->until < new.until && new.until - old->until < SECOND)
		return TC_ACT_UNSPEC;
	if (old)
		*old = new;
	else
		map_update(&flows, &p.flow, &new, BPF_ANY);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Apache-2.0";
