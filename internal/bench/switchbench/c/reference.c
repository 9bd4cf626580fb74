/*
 * The least that a learning switch in userspace does, as a yardstick: one thread, epoll, read and write, a table of
 * addresses that never ages, no VLANs, no checks, no counters. What a full switch is slower than this, its features cost.
 *
 *   reference [-g] PORT...      PORT is the name of a tap, which is made, or fd:N of an open one or of a datagram socket
 *
 * With -g taps have a vnet header and all offloads, and super-frames cross in one piece; then every PORT must be a tap.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

enum { MAX_PORTS = 256, MAX_FRAME = (64 << 10) + 512, DRAIN = 64, TABLE = 1 << 15 };

static int ports[MAX_PORTS], count, header;
static uint64_t table[TABLE]; /* address << 16 | port + 1 */

static int open_tap(const char *name, int offloads)
{
	struct ifreq ifr = { .ifr_flags = (short)(IFF_TAP | IFF_NO_PI | (offloads ? IFF_VNET_HDR : 0)) };
	unsigned f = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6;
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0)
		err(1, "make tap %s", name);
	if (offloads && ioctl(fd, TUNSETOFFLOAD, f) < 0 && ioctl(fd, TUNSETOFFLOAD, f & ~(TUN_F_USO4 | TUN_F_USO6)) < 0)
		err(1, "TUNSETOFFLOAD %s", name);
	return fd;
}

static uint64_t mac(const unsigned char *b)
{
	uint64_t m = 0;

	memcpy(&m, b, 6);
	return m;
}

/* slot is where an address is, or would be; the table is never full here. */
static uint64_t *slot(uint64_t m)
{
	uint64_t i = m * 0x9e3779b97f4a7c15u >> 49;

	while (table[i] && table[i] >> 16 != m)
		i = (i + 1) % TABLE;
	return &table[i];
}

/* give writes a frame; one that the port has no room for is lost. */
static void give(int port, const unsigned char *frame, size_t n)
{
	while (write(ports[port], frame, n) < 0 && errno == EINTR)
		;
}

static void forward(int from, const unsigned char *frame, size_t n)
{
	const unsigned char *ether = frame + header;
	uint64_t to;

	if (n < (size_t)header + 14)
		return;
	*slot(mac(ether + 6)) = mac(ether + 6) << 16 | (uint64_t)(from + 1);
	to = ether[0] & 1 ? 0 : *slot(mac(ether)) & 0xffff;
	if (to) {
		if ((int)to - 1 != from)
			give((int)to - 1, frame, n);
		return;
	}
	for (int i = 0; i < count; i++)
		if (i != from)
			give(i, frame, n);
}

int main(int argc, char **argv)
{
	static unsigned char frame[MAX_FRAME];
	struct epoll_event events[DRAIN];
	int offloads = 0, poll = epoll_create1(EPOLL_CLOEXEC);

	if (argc > 1 && !strcmp(argv[1], "-g")) {
		offloads = 1;
		header = 10;
		argv++, argc--;
	}
	for (int i = 1; i < argc && count < MAX_PORTS; i++, count++) {
		struct epoll_event e = { .events = EPOLLIN, .data.u32 = (uint32_t)count };

		ports[count] = strncmp(argv[i], "fd:", 3) ? open_tap(argv[i], offloads) : atoi(argv[i] + 3);
		fcntl(ports[count], F_SETFL, O_RDWR | O_NONBLOCK);
		if (epoll_ctl(poll, EPOLL_CTL_ADD, ports[count], &e) < 0)
			err(1, "epoll %s", argv[i]);
	}
	for (;;) {
		int n = epoll_wait(poll, events, DRAIN, -1);

		for (int i = 0; i < n; i++) {
			int from = (int)events[i].data.u32;
			ssize_t len = 1;

			for (int k = 0; k < DRAIN && (len = read(ports[from], frame, sizeof frame)) > 0; k++)
				forward(from, frame, (size_t)len);
			if (len < 0 && errno != EAGAIN && errno != EINTR)
				errx(0, "port %d: %s", from, strerror(errno));
		}
	}
}
