/*
 * behaviour WHAT IPV4 PORT: one way of connecting that only C shows exactly; prints what the kernel, or who stands in
 * for it, answered, as one line of `name=value`, then the body of a GET if there is a connection.
 *
 * Exit status 0: ran to its end, whatever the answers were; 2: can't be done here at all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "get.h"

static struct sockaddr_in destination = {.sin_family = AF_INET};
static char **arguments;
static const char request[] = "GET /peer HTTP/1.0\r\n\r\n";

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int answer(int result)
{
	return result < 0 ? errno : 0;
}

static int reach(int fd)
{
	return answer(connect(fd, (struct sockaddr *)&destination, sizeof destination));
}

static int tcp(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);

	if (fd < 0) {
		perror("socket");
		exit(2);
	}
	return fd;
}

static int so_error(int fd)
{
	int value = -1;
	socklen_t size = sizeof value;

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &size);
	return value;
}

static int wait_for(int fd, short events)
{
	struct pollfd one = {.fd = fd, .events = events};

	return poll(&one, 1, 20000) > 0 ? one.revents : 0;
}

/* What is left of an answer whose request has already been sent. */
static int rest(int fd)
{
	char buffer[4096];
	ssize_t count;
	size_t size = 0;

	while (size < sizeof buffer - 1 && (count = read(fd, buffer + size, sizeof buffer - 1 - size)) > 0)
		size += (size_t)count;
	buffer[size] = '\0';
	char *body = strstr(buffer, "\r\n\r\n");
	puts(body ? body + 4 : "nothing");
	return 0;
}

static int fast_open(const char *how)
{
	int fd = tcp(0);
	struct iovec part = {.iov_base = (void *)request, .iov_len = sizeof request - 1};
	struct mmsghdr message = {.msg_hdr = {.msg_name = &destination,
					      .msg_namelen = sizeof destination,
					      .msg_iov = &part,
					      .msg_iovlen = 1}};
	ssize_t sent;

	if (!strcmp(how, "sendto"))
		sent = sendto(fd, request, sizeof request - 1, MSG_FASTOPEN, (struct sockaddr *)&destination,
			      sizeof destination);
	else if (!strcmp(how, "sendmsg"))
		sent = sendmsg(fd, &message.msg_hdr, MSG_FASTOPEN);
	else
		sent = sendmmsg(fd, &message, 1, MSG_FASTOPEN) == 1 ? (ssize_t)message.msg_len : -1;
	int error = sent < 0 ? errno : 0;
	printf("sent=%zd errno=%d\n", sent, error);
	fflush(stdout);
	if (error) { /* allowed: the program then has to connect and to send in the ordinary way */
		int again = reach(fd);
		printf("connect=%d\n", again);
		return again ? 0 : get(fd, "target");
	}
	if (sent < (ssize_t)sizeof request - 1 && write(fd, request + sent, sizeof request - 1 - (size_t)sent) < 0)
		return 1;
	return rest(fd);
}

static int fast_open_connect(void)
{
	int fd = tcp(0), on = 1;

	printf("option=%d", answer(setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on)));
	int error = reach(fd);
	printf(" connect=%d\n", error);
	fflush(stdout);
	return error ? 0 : get(fd, "target");
}

/* SO_SNDTIMEO is a time limit for connect(2): EINPROGRESS when it has passed (socket(7)). */
static int send_timeout(const char *milliseconds)
{
	int fd = tcp(0);
	long limit = atol(milliseconds);
	struct timeval time = {.tv_sec = limit / 1000, .tv_usec = limit % 1000 * 1000};
	double start = now();

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
	int error = reach(fd);
	printf("connect=%d took=%.3f", error, now() - start);
	int ready = error == EINPROGRESS ? wait_for(fd, POLLOUT) : POLLOUT;
	printf(" events=%d so_error=%d\n", ready, so_error(fd));
	fflush(stdout);
	return ready == POLLOUT ? get(fd, "target") : 0;
}

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
	(void)number;
	alarms++;
}

/* A signal during a blocking connect: EINTR, or with SA_RESTART no sign of it; either way the connection comes up. */
static int alarmed(int flags, const char *milliseconds)
{
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};
	struct itimerval timer = {.it_value = {.tv_usec = 1000 * (*milliseconds ? atoi(milliseconds) : 200)}};
	int fd = tcp(0);
	double start = now();

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	int error = reach(fd);
	printf("connect=%d took=%.3f alarms=%d", error, now() - start, (int)alarms);
	int ready = error == EINTR ? wait_for(fd, POLLOUT) : POLLOUT;
	printf(" events=%d so_error=%d up=%.3f\n", ready, so_error(fd), now() - start);
	fflush(stdout);
	return ready == POLLOUT ? get(fd, "target") : 0;
}

/* An alarm without a handler ends the program in the middle of its connect. */
static int alarm_kills(void)
{
	struct itimerval timer = {.it_value = {.tv_usec = 200000}};

	setitimer(ITIMER_REAL, &timer, NULL);
	printf("connect=%d\n", reach(tcp(0)));
	return 0;
}

/* connect(2) again and again on one non-blocking socket. */
static int twice(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	printf("first=%d", reach(fd));
	printf(" second=%d", reach(fd));
	printf(" events=%d", wait_for(fd, POLLOUT));
	printf(" third=%d", reach(fd));
	printf(" fourth=%d", reach(fd));
	printf(" so_error=%d so_error=%d\n", so_error(fd), so_error(fd));
	fflush(stdout);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return get(fd, "target");
}

/* A blocking socket whose destination fails can be used for another try. */
static int again(const char *port)
{
	int fd = tcp(0);
	in_port_t good = destination.sin_port;

	destination.sin_port = htons((uint16_t)atoi(port));
	printf("refused=%d", reach(fd));
	printf(" so_error=%d", so_error(fd));
	destination.sin_port = good;
	printf(" connect=%d\n", reach(fd));
	fflush(stdout);
	return get(fd, "target");
}

static void on_ready(int set, int fd, double start)
{
	struct epoll_event event = {0};
	int count = epoll_wait(set, &event, 1, 20000);

	printf(" count=%d events=%u waited=%.3f at=%.4f", count, event.events, now() - start, now());
	printf(" same=%d so_error=%d\n", event.data.fd == fd, so_error(fd));
	fflush(stdout);
}

/*
 * The descriptor is in the epoll set before connect(2), or goes there after it. A connect to a closed port of loopback
 * goes before, so that what is measured isn't the first call of a program that has just started.
 */
static int with_epoll(uint32_t mode, int before)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(1)};
	int first = tcp(SOCK_CLOEXEC);

	here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	double began = now();
	if (connect(first, (struct sockaddr *)&here, sizeof here) == 0)
		return 2;
	close(first);
	printf("first=%.4f ", now() - began);
	int set = epoll_create1(EPOLL_CLOEXEC), fd = tcp(SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct epoll_event event = {.events = EPOLLOUT | EPOLLRDHUP | mode, .data.fd = fd}, stale;

	if (before) {
		epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
		if (mode)
			epoll_wait(set, &stale, 1, 0); /* takes the edge of a socket that isn't connected at all: EPOLLHUP */
	}
	double start = now();
	int error = reach(fd);
	double took = now() - start;
	if (!before)
		epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
	int early = epoll_wait(set, &stale, 1, 100);
	printf("connect=%d took=%.4f early=%d", error, took, early);
	on_ready(set, fd, start);
	if (reach(fd) && errno != EISCONN)
		return 0;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return get(fd, "target");
}

/* The child of vfork(2) borrows its parent's memory: it connects, then runs another program. */
static int child_of_vfork(void)
{
	int fd = tcp(0), status;
	pid_t child = vfork();

	if (child == 0) {
		if (reach(fd))
			_exit(errno);
		execl("/bin/true", "true", (char *)NULL);
		_exit(127);
	}
	waitpid(child, &status, 0);
	printf("status=%d\n", status);
	fflush(stdout);
	return status ? 0 : get(fd, "target");
}

/* A sendmmsg(2) that connects, whose msg_len can't be written; and what a socket after it sees. */
static int unwritable(void)
{
	struct iovec data = {(void *)request, sizeof request - 1};
	struct mmsghdr *message = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	message->msg_hdr.msg_name = &destination;
	message->msg_hdr.msg_namelen = sizeof destination;
	message->msg_hdr.msg_iov = &data;
	message->msg_hdr.msg_iovlen = 1;
	mprotect(message, 4096, PROT_READ);
	printf("send=%d\n", answer(sendmmsg(tcp(0), message, 1, MSG_FASTOPEN)));
	printf("connect=%d\n", reach(tcp(0)));
	return 0;
}

static void *reaching(void *fd)
{
	return (void *)(long)reach(*(int *)fd);
}

/* Stops a child whose other thread is in connect(): how long until it's stopped, and what the connect() says after. */
static int stopped(void)
{
	int status, fd = tcp(0);
	double start;
	pid_t child = fork();

	if (!child) {
		pthread_t thread;
		void *error;

		pthread_create(&thread, NULL, reaching, &fd);
		pthread_join(thread, &error);
		_exit((int)(long)error);
	}
	usleep(200000);
	start = now();
	kill(child, SIGSTOP);
	waitpid(child, &status, WUNTRACED);
	printf("stopped=%d after=%.3f\n", WIFSTOPPED(status), now() - start);
	kill(child, SIGCONT);
	waitpid(child, &status, 0);
	printf("connect=%d\n", status);
	return 0;
}

/* getpeername() and SO_ERROR of a program that nobody may look into. */
static int closed(void)
{
	struct sockaddr_in peer;
	socklen_t size = sizeof peer;
	int fd = tcp(0), error = reach(fd);

	prctl(PR_SET_DUMPABLE, 0);
	printf("connect=%d peer=%d", error, answer(getpeername(fd, (struct sockaddr *)&peer, &size)));
	printf(" error=%d again=%d\n", so_error(fd), reach(tcp(0)));
	return 0;
}

/* posix_spawn of this very program with an empty environment. */
static int spawned(void)
{
	char *argv[] = {arguments[0], "plain", arguments[2], arguments[3], NULL};
	char *environment[] = {NULL};
	pid_t child;
	int status, error = posix_spawn(&child, "/proc/self/exe", NULL, NULL, argv, environment);

	if (error)
		return 2;
	waitpid(child, &status, 0);
	printf("status=%d\n", status);
	return 0;
}

static int plain(void)
{
	int error = reach(tcp(0));

	printf("connect=%d\n", error);
	fflush(stdout);
	if (error)
		return 0;
	return get(3, "target");
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	const char *what = argv[1], *extra = argc > 4 ? argv[4] : "";
	arguments = argv;
	inet_pton(AF_INET, argv[2], &destination.sin_addr);
	destination.sin_port = htons((uint16_t)atoi(argv[3]));
	if (!strncmp(what, "fastopen-send", 13))
		return fast_open(what + 9);
	if (!strcmp(what, "stopped"))
		return stopped();
	if (!strcmp(what, "closed"))
		return closed();
	if (!strcmp(what, "unwritable"))
		return unwritable();
	if (!strcmp(what, "fastopen-connect"))
		return fast_open_connect();
	if (!strcmp(what, "sndtimeo"))
		return send_timeout(extra);
	if (!strcmp(what, "alarm"))
		return alarmed(0, extra);
	if (!strcmp(what, "alarm-restart"))
		return alarmed(SA_RESTART, extra);
	if (!strcmp(what, "alarm-kills"))
		return alarm_kills();
	if (!strcmp(what, "twice"))
		return twice();
	if (!strcmp(what, "again"))
		return again(extra);
	if (!strcmp(what, "vfork"))
		return child_of_vfork();
	if (!strcmp(what, "spawn"))
		return spawned();
	if (!strcmp(what, "plain"))
		return plain();
	if (!strcmp(what, "epoll"))
		return with_epoll(strstr(extra, "et") ? EPOLLET : 0, strstr(extra, "before") != NULL);
	return 2;
}
