/*
 * Traffic between two network namespaces, counted in shared memory: the harness reads the counters while this runs, and so
 * chooses itself from when to when it measures.
 *
 *   traffic tcp-receive PORT STREAMS            traffic tcp-send ADDRESS PORT STREAMS
 *   traffic udp-receive PORT                    traffic udp-send ADDRESS PORT
 *   traffic echo PORT                           traffic ask ADDRESS PORT
 *
 * Fd 3 is a file as long as struct counters. Sockets block, and each TCP stream has a thread at each end, so that what is
 * measured is the way between them. It runs until it is ended.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STREAMS = 64, CHUNK = 128 << 10, DATAGRAM = 64, BURST = 64, QUESTION = 64, BUCKETS = 4096, BUCKET_NS = 250 };

/* counters are read by the harness as little-endian words, in this order. */
static struct counters {
	_Atomic uint64_t ready;          /* 1 when the sockets are open */
	_Atomic uint64_t count;          /* bytes, datagrams or round trips */
	_Atomic uint64_t trips[BUCKETS]; /* round trips by time, BUCKET_NS each; the last has all that were longer */
} *counters;

static void add(uint64_t n)
{
	atomic_fetch_add_explicit(&counters->count, n, memory_order_relaxed);
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };

	if (inet_pton(AF_INET, ip, &a.sin_addr) != 1)
		errx(1, "%s: not an IPv4 address", ip);
	return a;
}

static int open_socket(int type)
{
	int one = 1, fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		err(1, "socket");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0)
		err(1, "SO_REUSEADDR");
	return fd;
}

static void no_delay(int fd)
{
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0)
		err(1, "TCP_NODELAY");
}

static int bound(int type, const char *port)
{
	int fd = open_socket(type);
	struct sockaddr_in a = address("0.0.0.0", port);

	if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0)
		err(1, "bind port %s", port);
	if (type == SOCK_STREAM && listen(fd, MAX_STREAMS) < 0)
		err(1, "listen");
	atomic_store(&counters->ready, 1);
	return fd;
}

static int connected(int type, const char *ip, const char *port)
{
	int fd = open_socket(type);
	struct sockaddr_in a = address(ip, port);

	if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
		err(1, "connect to %s port %s", ip, port);
	return fd;
}

static void *receive_stream(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char *buf = malloc(CHUNK);
	ssize_t n;

	while ((n = read(fd, buf, CHUNK)) > 0)
		add((uint64_t)n);
	return NULL;
}

static void *send_stream(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char *buf = calloc(1, CHUNK);

	while (write(fd, buf, CHUNK) > 0)
		;
	return NULL;
}

/* stream has a thread of its own. */
static pthread_t stream(void *(*run)(void *), int fd)
{
	pthread_t t;

	if (pthread_create(&t, NULL, run, (void *)(intptr_t)fd))
		errx(1, "no thread");
	return t;
}

static void tcp(int streams, int listener, char **to)
{
	pthread_t threads[MAX_STREAMS];

	if (streams < 1 || streams > MAX_STREAMS)
		errx(1, "want 1 to %d streams", MAX_STREAMS);
	for (int i = 0; i < streams; i++) {
		if (listener >= 0)
			threads[i] = stream(receive_stream, accept(listener, NULL, NULL));
		else
			threads[i] = stream(send_stream, connected(SOCK_STREAM, to[0], to[1]));
	}
	atomic_store(&counters->ready, 1);
	for (int i = 0; i < streams; i++)
		pthread_join(threads[i], NULL);
}

/* The messages of a burst, all of one buffer: nobody looks at the bytes. */
static struct mmsghdr *burst(void)
{
	static struct mmsghdr msgs[BURST];
	static char bytes[DATAGRAM];
	static struct iovec iov = { bytes, sizeof bytes };

	for (int i = 0; i < BURST; i++) {
		msgs[i].msg_hdr.msg_iov = &iov;
		msgs[i].msg_hdr.msg_iovlen = 1;
	}
	return msgs;
}

static void udp_receive(int fd)
{
	struct mmsghdr *msgs = burst();
	int n, room = 4 << 20;

	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0)
		err(1, "SO_RCVBUFFORCE");
	for (;;) {
		n = recvmmsg(fd, msgs, BURST, MSG_WAITFORONE, NULL);
		if (n > 0)
			add((uint64_t)n);
	}
}

/* udp_send counts what the kernel took, of which the device's queue may drop some. */
static void udp_send(int fd)
{
	struct mmsghdr *msgs = burst();

	atomic_store(&counters->ready, 1);
	for (;;) {
		int n = sendmmsg(fd, msgs, BURST, 0);
		if (n > 0)
			add((uint64_t)n);
	}
}

static int whole(int fd, char *buf)
{
	return recv(fd, buf, QUESTION, MSG_WAITALL) == QUESTION;
}

static void echo(int listener)
{
	char buf[QUESTION];

	for (;;) {
		int fd = accept(listener, NULL, NULL);
		no_delay(fd);
		while (whole(fd, buf) && send(fd, buf, QUESTION, MSG_NOSIGNAL) == QUESTION)
			add(1);
		close(fd);
	}
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void ask(int fd)
{
	char buf[QUESTION] = { 0 };
	uint64_t start, bucket;

	no_delay(fd);
	atomic_store(&counters->ready, 1);
	for (;;) {
		start = now();
		if (send(fd, buf, QUESTION, MSG_NOSIGNAL) != QUESTION || !whole(fd, buf))
			return;
		bucket = (now() - start) / BUCKET_NS;
		atomic_fetch_add_explicit(&counters->trips[bucket < BUCKETS ? bucket : BUCKETS - 1], 1, memory_order_relaxed);
		add(1);
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	char **args = argv + 2;

	counters = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	if (counters == MAP_FAILED)
		err(1, "map fd 3");
	if (argc == 4 && !strcmp(mode, "tcp-receive"))
		tcp(atoi(args[1]), bound(SOCK_STREAM, args[0]), NULL);
	else if (argc == 5 && !strcmp(mode, "tcp-send"))
		tcp(atoi(args[2]), -1, args);
	else if (argc == 3 && !strcmp(mode, "udp-receive"))
		udp_receive(bound(SOCK_DGRAM, args[0]));
	else if (argc == 4 && !strcmp(mode, "udp-send"))
		udp_send(connected(SOCK_DGRAM, args[0], args[1]));
	else if (argc == 3 && !strcmp(mode, "echo"))
		echo(bound(SOCK_STREAM, args[0]));
	else if (argc == 4 && !strcmp(mode, "ask"))
		ask(connected(SOCK_STREAM, args[0], args[1]));
	else
		errx(2, "usage: see the top of traffic.c");
	return 0;
}
