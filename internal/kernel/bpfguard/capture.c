//go:build ignore

// A capture of the frames that port security or the filter of what comes in drops: their first
// bytes, with the reason, in a ring buffer. Frames for which it has no room are counted. No sender
// waits.
//
// `make generate` compiles it. Linux 5.10 has all that it needs.

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
static u64 (*now)(void) = (void *)BPF_FUNC_ktime_get_ns;
static void *(*reserve)(void *ringbuf, u64 size, u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*submit)(void *data, u64 flags) = (void *)BPF_FUNC_ringbuf_submit;

#include "dropped.h"

#define SNAPLEN 256
#define RING (1 << 20)

// A record, which capture.go parses.
struct record {
	u64 time;
	u32 reason;
	u32 length; // of the whole frame, without the tag
	u32 tag;    // 0x10000 and the TCI of the tag that the kernel has taken out; 0 for none
	u32 captured;
	u8 data[SNAPLEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING);
} frames SEC(".maps");

// Frames for which the ring buffer had no room.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} lost SEC(".maps");

// This capture's place among those of the program, and what is added to the reason.
const volatile struct place {
	u32 slot, base;
} place = {};

SEC("tc") int vmnet_capture(struct __sk_buff *skb)
{
	u32 zero = 0, len = skb->len, why = skb->cb[0];
	u64 *count;
	struct record *r = reserve(&frames, sizeof(*r), 0);

	if (r) {
		r->time = now();
		r->reason = place.base + why;
		r->length = len;
		r->tag = skb->vlan_present ? 0x10000 | (skb->vlan_tci & 0xffff) : 0;
		if (len > SNAPLEN)
			len = SNAPLEN;
		// The verifier needs both bounds of what the compiler would compute otherwise.
		u32 rest = len - 1;
		asm volatile("" : "+r"(rest));
		rest &= SNAPLEN - 1;
		r->captured = 0;
		if (load_bytes(skb, 0, r->data, rest + 1) == 0)
			r->captured = rest + 1;
		submit(r, 0);
	} else {
		count = map_lookup(&lost, &zero);
		if (count)
			(*count)++;
	}
	captured(skb, why, place.slot + 1);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
