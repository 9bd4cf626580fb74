// Captures of dropped frames (capture.c), for the programs that drop them.

#define MAX_CAPTURES 4

static long (*tail_call)(void *ctx, void *programs, u32 index) = (void *)BPF_FUNC_tail_call;

// The programs of the captures that run. The kernel empties it when nobody has it open any more
// (bpf_map_put_uref), so that a capture ends with its process.
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, MAX_CAPTURES);
	__type(key, u32);
	__type(value, u32);
} captures SEC(".maps");

// captured continues in the program of the first capture from that place on, which drops the frame,
// and returns if there is none. The reason is in skb->cb, which nobody needs of such a frame.
INLINE void captured(struct __sk_buff *skb, u32 why, u32 first)
{
	skb->cb[0] = why;
#pragma unroll
	for (u32 i = 0; i < MAX_CAPTURES; i++)
		if (i >= first)
			tail_call(skb, &captures, i);
}
