/*
 * The ends of two taps that a kernel bridge connects, as a VMM has them: frames are written to one and read from the
 * other, in both directions, by one thread. The bridge's work is done in its system calls.
 *
 *   taps NAME NAME SIZE         makes the taps; SIZE is that of a frame in bytes
 *
 * Fd 3 is a file as long as struct counters. It runs until it is ended.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_FRAME = 1514, HEADER = 10, WINDOW = 256, BUCKETS = 4096 };

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
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0)
		err(1, "make tap %s", name);
	return fd;
}

/* pass writes a window of frames to one tap, and reads what the other has got. */
static void pass(int from, int to, const unsigned char *frame, size_t size)
{
	unsigned char got[HEADER + MAX_FRAME];
	uint64_t n = 0;

	for (int i = 0; i < WINDOW; i++)
		if (write(from, frame, size) < 0 && errno != EAGAIN && errno != EIO)
			err(1, "write");
	while (read(to, got, sizeof got) > 0)
		n += !memcmp(got + HEADER, frame + HEADER, 12);
	atomic_fetch_add_explicit(&counters->count, n, memory_order_relaxed);
}

int main(int argc, char **argv)
{
	unsigned char frames[2][HEADER + MAX_FRAME] = { { 0 } };
	int taps[2], size = argc == 4 ? atoi(argv[3]) : 0;

	if (size < 60 || size > MAX_FRAME)
		errx(2, "want the names of two taps, and a frame's size of 60 to %d bytes", MAX_FRAME);
	counters = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	if (counters == MAP_FAILED)
		err(1, "fd 3");
	for (int i = 0; i < 2; i++) {
		unsigned char *mac = frames[i] + HEADER;

		taps[i] = open_tap(argv[1 + i]);
		mac[0] = mac[6] = 2; /* to the other tap's station, from this one's; type 88b5 is for experiments */
		mac[5] = (unsigned char)(2 - i), mac[11] = (unsigned char)(1 + i);
		mac[12] = 0x88, mac[13] = 0xb5;
	}
	counters->ready = 1;
	for (;;) {
		pass(taps[0], taps[1], frames[0], HEADER + (size_t)size);
		pass(taps[1], taps[0], frames[1], HEADER + (size_t)size);
	}
}
