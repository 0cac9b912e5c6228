/*
 * The two ends between which `scripts/bench server` measures: a destination, and clients that speak SOCKS5 or none.
 *
 * bench_server target
 *	prints two ports of 127.0.0.1 and serves until standard input ends. The first one's connections are sent one byte
 *	and closed. The second one's do what their first byte says: 'S' is sent bytes without end, 'E' is echoed.
 * bench_server connects PROXY TARGET PROCESSES SECONDS
 *	each process connects, is sent a byte, and closes, again and again; prints how often per second in all.
 * bench_server bulk PROXY TARGET SECONDS
 *	prints the bytes per second that come.
 * bench_server echo PROXY TARGET COUNT
 *	prints the median of the seconds that one byte takes there and back.
 * bench_server hold PROXY TARGET COUNT
 *	opens so many, prints a line, and keeps them until standard input ends.
 * PROXY and TARGET are ports of 127.0.0.1; PROXY 0 connects straight to the target.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PIECE (256 * 1024)
#define STACK (64 * 1024)
#define WARM 0.2 /* s until what comes is counted */

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static struct sockaddr_in loopback(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static void receive(int fd, uint8_t *data, size_t size)
{
	for (size_t got = 0; got < size;) {
		ssize_t more = recv(fd, data + got, size - got, 0);

		if (more <= 0)
			fail("the proxy has closed");
		got += (size_t)more;
	}
}

/* A connection to the target, by SOCKS5 (RFC 1928) when there is a proxy; one message waits for the other's answer. */
static int reach(int proxy, int target)
{
	struct sockaddr_in address = loopback(proxy ? proxy : target);
	uint8_t request[] = {5, 1, 0, 1, 127, 0, 0, 1, (uint8_t)(target >> 8), (uint8_t)target};
	uint8_t reply[10];
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
		fail("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (!proxy)
		return fd;
	if (send(fd, "\5\1\0", 3, MSG_NOSIGNAL) != 3)
		fail("send");
	receive(fd, reply, 2);
	if (send(fd, request, sizeof request, MSG_NOSIGNAL) != sizeof request)
		fail("send");
	receive(fd, reply, sizeof reply);
	if (reply[1]) {
		fprintf(stderr, "the proxy answers %d\n", reply[1]);
		exit(1);
	}
	return fd;
}

static int listener(void)
{
	struct sockaddr_in address = loopback(0);
	socklen_t size = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096))
		fail("listen");
	if (getsockname(fd, (struct sockaddr *)&address, &size))
		fail("getsockname");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

static void *serve(void *argument)
{
	int fd = (int)(intptr_t)argument, on = 1;
	char what;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (recv(fd, &what, 1, 0) == 1 && what == 'S') {
		static const char data[PIECE];

		while (send(fd, data, PIECE, MSG_NOSIGNAL) > 0)
			continue;
	} else {
		while (recv(fd, &what, 1, 0) == 1 && send(fd, &what, 1, MSG_NOSIGNAL) == 1)
			continue;
	}
	close(fd);
	return NULL;
}

static void *accept_and_serve(void *argument)
{
	int listening = (int)(intptr_t)argument, fd;
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	while ((fd = accept(listening, NULL, NULL)) >= 0)
		if (pthread_create(&thread, &attributes, serve, (void *)(intptr_t)fd))
			fail("pthread_create");
	fail("accept");
	return NULL;
}

static void *accept_and_close(void *argument)
{
	int listening = (int)(intptr_t)argument, fd;

	while ((fd = accept(listening, NULL, NULL)) >= 0) {
		send(fd, "!", 1, MSG_NOSIGNAL);
		close(fd);
	}
	fail("accept");
	return NULL;
}

static int target(void)
{
	int closing = listener(), serving = listener();
	pthread_t thread;
	char byte;

	if (pthread_create(&thread, NULL, accept_and_close, (void *)(intptr_t)closing) ||
	    pthread_create(&thread, NULL, accept_and_serve, (void *)(intptr_t)serving))
		fail("pthread_create");
	while (read(0, &byte, 1) > 0)
		continue;
	return 0;
}

static uint64_t connect_until(int proxy, int port, double end)
{
	uint64_t count = 0;
	uint8_t byte;

	for (; now() < end; count++) {
		int fd = reach(proxy, port);

		receive(fd, &byte, 1);
		close(fd);
	}
	return count;
}

static int connects(int proxy, int port, int processes, double seconds)
{
	uint64_t *counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), sum = 0;
	double start = now();
	int status, failed = 0;

	if (counts == MAP_FAILED || processes > 512)
		fail("mmap");
	for (int number = 0; number < processes; number++)
		if (!fork()) {
			counts[number] = connect_until(proxy, port, start + seconds);
			_exit(0);
		}
	while (wait(&status) > 0)
		failed |= status;
	for (int number = 0; number < processes; number++)
		sum += counts[number];
	printf("%.1f\n", (double)sum / (now() - start));
	return failed ? 1 : 0;
}

static int bulk(int proxy, int port, double seconds)
{
	int fd = reach(proxy, port);
	double start = now(), time = start;
	uint64_t sum = 0;
	static char data[PIECE];

	if (send(fd, "S", 1, MSG_NOSIGNAL) != 1)
		fail("send");
	while ((time = now()) < start + WARM)
		if (recv(fd, data, PIECE, 0) <= 0)
			fail("recv");
	for (start = time; (time = now()) < start + seconds;) {
		ssize_t got = recv(fd, data, PIECE, 0);

		if (got <= 0)
			fail("recv");
		sum += (uint64_t)got;
	}
	printf("%.0f\n", (double)sum / (time - start));
	return 0;
}

static int in_order(const void *one, const void *other)
{
	double difference = *(const double *)one - *(const double *)other;

	return (difference > 0) - (difference < 0);
}

static int echo(int proxy, int port, int count)
{
	double *times = calloc((size_t)count, sizeof *times);
	int fd = reach(proxy, port);
	uint8_t byte = 'E';

	if (!times || send(fd, &byte, 1, MSG_NOSIGNAL) != 1)
		fail("send");
	for (int number = 0; number < count; number++) {
		double start = now();

		if (send(fd, "x", 1, MSG_NOSIGNAL) != 1)
			fail("send");
		receive(fd, &byte, 1);
		times[number] = now() - start;
	}
	qsort(times, (size_t)count, sizeof *times, in_order);
	printf("%.9f\n", times[count / 2]);
	free(times);
	return 0;
}

static int hold(int proxy, int port, int count)
{
	char byte;

	while (count--)
		reach(proxy, port);
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		continue;
	return 0;
}

int main(int argc, char **argv)
{
	struct rlimit limit;
	int proxy = argc > 3 ? atoi(argv[2]) : 0, port = argc > 3 ? atoi(argv[3]) : 0;

	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	if (argc == 2 && !strcmp(argv[1], "target"))
		return target();
	if (argc == 6 && !strcmp(argv[1], "connects"))
		return connects(proxy, port, atoi(argv[4]), atof(argv[5]));
	if (argc == 5 && !strcmp(argv[1], "bulk"))
		return bulk(proxy, port, atof(argv[4]));
	if (argc == 5 && !strcmp(argv[1], "echo"))
		return echo(proxy, port, atoi(argv[4]));
	if (argc == 5 && !strcmp(argv[1], "hold"))
		return hold(proxy, port, atoi(argv[4]));
	return 2;
}
