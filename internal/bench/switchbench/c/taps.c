/*
 * The ends of two taps that a bridge or switch connects, as a VMM has them: frames are written to one and read from the
 * other, in both directions, by one thread, with a number of frames on their way at most. What a bridge does is done in
 * its system calls.
 *
 *   taps NAME NAME SIZE         makes the taps; SIZE is that of a frame in bytes. One of more than 1514 bytes is a
 *                               super-frame of TCP
 *
 * Fd 3 is a file as long as struct counters. It runs until it is ended.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { ORDINARY = 1514, MAX_FRAME = 65535, HEADER = 10, MSS = 1448, LOST_MS = 50, BUCKETS = 4096 };

/* counters are those of traffic.c. */
static struct counters {
	_Atomic uint64_t ready; /* 1 when the taps are there */
	_Atomic uint64_t count; /* frames that were read */
	_Atomic uint64_t trips[BUCKETS];
} *counters;

static int open_tap(const char *name)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0 || ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0)
		err(1, "make tap %s", name);
	return fd;
}

/* A direction has frames on their way, and lost some if none has come for a while. */
struct direction {
	int from, to, flight;
	int64_t last; /* millisecond in which one came */
	unsigned char frame[HEADER + MAX_FRAME];
};

/* pass fills a window of frames, and returns how many have come. */
static int pass(struct direction *d, size_t size)
{
	static unsigned char got[HEADER + MAX_FRAME];
	int n = 0, window = size > HEADER + ORDINARY ? 32 : 256;
	struct timespec t;
	int64_t now;

	while (d->flight < window && write(d->from, d->frame, size) > 0)
		d->flight++;
	if (d->flight < window && errno != EAGAIN && errno != EIO)
		err(1, "write");
	while (n < window && read(d->to, got, sizeof got) > 0)
		n += !memcmp(got + HEADER, d->frame + HEADER, 12);
	d->flight = d->flight > n ? d->flight - n : 0;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	now = t.tv_sec * 1000 + t.tv_nsec / 1000000;
	if (n > 0)
		d->last = now;
	else if (now > d->last + LOST_MS)
		d->flight = 0, d->last = now;
	atomic_fetch_add_explicit(&counters->count, (uint64_t)n, memory_order_relaxed);
	return n;
}

/* super makes the frame a super-frame of TCP over IPv4 with that many bytes. */
static void super(unsigned char *frame, size_t size)
{
	struct virtio_net_hdr h = {
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .hdr_len = 54, .gso_size = MSS,
		.csum_start = 34, .csum_offset = 16,
	};
	unsigned char *ip = frame + HEADER + 14, *tcp = ip + 20;
	uint32_t sum = 0;

	memcpy(frame, &h, sizeof h);
	ip[-2] = 8, ip[-1] = 0;
	ip[0] = 0x45, ip[2] = (unsigned char)((size - 14) >> 8), ip[3] = (unsigned char)(size - 14);
	ip[8] = 64, ip[9] = 6, ip[12] = ip[16] = 10, ip[15] = 1, ip[19] = 2;
	for (int i = 0; i < 20; i += 2)
		sum += (uint32_t)(ip[i] << 8 | ip[i + 1]);
	sum = ~((sum & 0xffff) + (sum >> 16)); /* a bridge with br_netfilter looks at it */
	ip[10] = (unsigned char)(sum >> 8), ip[11] = (unsigned char)sum;
	tcp[12] = 5 << 4, tcp[13] = 0x10;
}

int main(int argc, char **argv)
{
	static struct direction both[2];
	int taps[2], size = argc == 4 ? atoi(argv[3]) : 0;

	if (size < 60 || size > MAX_FRAME)
		errx(2, "want the names of two taps, and a frame's size of 60 to %d bytes", MAX_FRAME);
	counters = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	if (counters == MAP_FAILED)
		err(1, "fd 3");
	for (int i = 0; i < 2; i++) {
		unsigned char *mac = both[i].frame + HEADER;

		taps[i] = open_tap(argv[1 + i]);
		mac[0] = mac[6] = 2; /* to the other tap's station, from this one's; type 88b5 is for experiments */
		mac[5] = (unsigned char)(2 - i), mac[11] = (unsigned char)(1 + i);
		mac[12] = 0x88, mac[13] = 0xb5;
		if (size > ORDINARY)
			super(both[i].frame, (size_t)size);
	}
	both[0].from = both[1].to = taps[0], both[0].to = both[1].from = taps[1];
	counters->ready = 1;
	for (;;) {
		struct pollfd wait[2] = { { .fd = taps[0], .events = POLLIN }, { .fd = taps[1], .events = POLLIN } };

		if (pass(&both[0], HEADER + (size_t)size) + pass(&both[1], HEADER + (size_t)size) > 0)
			continue;
		poll(wait, 2, LOST_MS);
	}
}
