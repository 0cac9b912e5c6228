/*
 * calls WHAT IPV4 PORT NAME: the calls that the shim stands before, made in the ways of real programs. Prints what they
 * answered, as `name=value` words. Exit status 0: ran to its end, whatever the answers were.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <resolv.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in destination = {.sin_family = AF_INET};
static const char *name;
static char **arguments;

static int answer(long result)
{
	return result < 0 ? errno : 0;
}

static int reach(int fd)
{
	return answer(connect(fd, (struct sockaddr *)&destination, sizeof destination));
}

/* A new TCP socket connected to the destination: the errno. */
static int plain(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), error = reach(fd);

	close(fd);
	return error;
}

static int open_files(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int count = 0;

	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

static struct sockaddr_in at(const char *host, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, host, &address.sin_addr);
	return address;
}

/* before main(), and before any constructor */

static int early;

#ifdef __GLIBC__ /* musl gives these no arguments */
static void before_all(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "early")) {
		destination = at(argv[2], atoi(argv[3]));
		early = plain();
	}
}

__attribute__((section(".preinit_array"), used)) static void (*const preinit)(int, char **) = before_all;
#endif

static int errnos(void)
{
	struct addrinfo *list;
	struct sockaddr_in peer;
	socklen_t size = sizeof peer;
	int fd = socket(AF_INET, SOCK_STREAM, 0), value;

	errno = 77;
	printf("connect=%d", connect(fd, (struct sockaddr *)&destination, sizeof destination) ? errno : errno == 77 ? 0 : -1);
	errno = 77;
	printf(" peer=%d", getpeername(fd, (struct sockaddr *)&peer, &size) ? errno : errno == 77 ? 0 : -1);
	size = sizeof value;
	errno = 77;
	printf(" error=%d", getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &size) ? errno : errno == 77 ? value : -1);
	errno = 77;
	printf(" names=%d", getaddrinfo(name, "80", NULL, &list) ? -2 : errno == 77 ? 0 : -1);
	printf(" same=%d\n", peer.sin_addr.s_addr == destination.sin_addr.s_addr && peer.sin_port == destination.sin_port);
	printf("again=%d short=%d unknown=%d bad=%d", reach(fd), answer(connect(fd, (struct sockaddr *)&destination, 3)),
	       answer(connect(9999, (struct sockaddr *)&destination, sizeof destination)),
	       answer(connect(0, (struct sockaddr *)&destination, sizeof destination)));
	fd = socket(AF_INET, SOCK_STREAM, 0);
	printf(" fault=%d\n", answer(connect(fd, (struct sockaddr *)8, sizeof destination)));
	return 0;
}

static int raw(void)
{
	struct sockaddr_in peer;
	socklen_t size = sizeof peer;
	int value = -1;
	long fd = syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);

	printf("connect=%d", answer(syscall(SYS_connect, fd, &destination, sizeof destination)));
	printf(" peer=%d", answer(syscall(SYS_getpeername, fd, &peer, &size)));
	printf(" same=%d", !memcmp(&peer.sin_addr, &destination.sin_addr, sizeof peer.sin_addr));
	size = sizeof value;
	printf(" error=%d", answer(syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_ERROR, &value, &size)));
	printf(" packet=%d", answer(syscall(SYS_socket, AF_PACKET, SOCK_RAW, 0)));
	printf(" uring=%d", answer(syscall(425, 1, NULL)));
	printf(" other=%d\n", syscall(SYS_getpid) == getpid() && syscall(SYS_lseek, fd, 0L, 0) < 0 && errno == ESPIPE);
	return 0;
}

/* DNS by UDP, in every way to send and to receive; what else UDP is refused */

static const unsigned char query[] = "\x12\x34\1\0\0\1\0\0\0\0\0\0\4name\7example\0\0\1\0\1";

static int shown(const char *what, ssize_t size, const struct sockaddr_in *from)
{
	char text[INET_ADDRSTRLEN] = "-";

	if (from)
		inet_ntop(AF_INET, &from->sin_addr, text, sizeof text);
	return printf("%s=%s%s:%d ", what, size > (ssize_t)sizeof query ? "" : "none", text, from ? ntohs(from->sin_port) : 0);
}

static int datagrams(void)
{
	struct sockaddr_in server = at("203.0.113.53", 53), elsewhere = at("203.0.113.53", 9), from = {0};
	unsigned char room[512];
	struct iovec out = {(void *)query, sizeof query - 1}, in = {room, sizeof room};
	struct mmsghdr send = {.msg_hdr = {.msg_name = &server, .msg_namelen = sizeof server, .msg_iov = &out, .msg_iovlen = 1}};
	struct mmsghdr take = {.msg_hdr = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &in, .msg_iovlen = 1}};
	struct timeval limit = {.tv_sec = 10};
	socklen_t size = sizeof from;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	sendto(fd, query, sizeof query - 1, 0, (struct sockaddr *)&server, sizeof server);
	shown("sendto", recvfrom(fd, room, sizeof room, 0, (struct sockaddr *)&from, &size), &from);
	sendmsg(fd, &send.msg_hdr, 0);
	memset(&from, 0, sizeof from);
	shown("sendmsg", recvmsg(fd, &take.msg_hdr, 0), &from);
	sendmmsg(fd, &send, 1, 0);
	memset(&from, 0, sizeof from);
	take.msg_hdr.msg_namelen = sizeof from;
	shown("sendmmsg", recvmmsg(fd, &take, 1, 0, NULL) == 1 ? (ssize_t)take.msg_len : -1, &from);
	printf("connect=%d ", answer(connect(fd, (struct sockaddr *)&server, sizeof server)));
	write(fd, query, sizeof query - 1);
	memset(&from, 0, sizeof from);
	size = sizeof from;
	getpeername(fd, (struct sockaddr *)&from, &size);
	shown("write", read(fd, room, sizeof room), &from);
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	printf("nonblocking=%d cloexec=%d elsewhere=%d\n", !!(fcntl(fd, F_GETFL) & O_NONBLOCK), fcntl(fd, F_GETFD),
	       answer(sendto(fd, "x", 1, 0, (struct sockaddr *)&elsewhere, sizeof elsewhere)));
	return 0;
}

/* resolver(3) */

/* rcode and number of answers, or the h_errno that it failed with */
static void result(const char *what, int size, const unsigned char *message, const int *error)
{
	if (size > 0)
		printf("%s=%d/%d ", what, message[3] & 15, message[7]);
	else
		printf("%s=%d ", what, *error);
}

static int resolver(void)
{
	static unsigned char huge[1 << 20]; /* no packet takes it */
	unsigned char room[512];
	int size;

	result("query", res_query(name, 1, 1, room, sizeof room), room, &h_errno);
	result("search", res_search(name, 1, 28, room, sizeof room), room, &h_errno);
	result("querydomain", res_querydomain("www", name, 1, 1, room, sizeof room), room, &h_errno);
	size = res_query(name, 1, 15, room, sizeof room);
	result("mx", size, room, &h_errno);
	result("literal", res_query("192.0.2.1", 1, 1, room, sizeof room), room, &h_errno);
	result("send", res_send(query, sizeof query - 1, room, sizeof room), room, &h_errno);
	printf("id=%d ", room[0] == query[0] && room[1] == query[1]);
	printf("small=%d ", res_query(name, 1, 1, room, 20));
	printf("family=%d ", gethostbyname2(name, AF_UNIX) || gethostbyaddr(&in6addr_loopback, sizeof in6addr_loopback, AF_UNIX));
	printf("huge=%d ", answer(res_send(huge, sizeof huge, room, sizeof room)));
#ifdef __GLIBC__
	struct __res_state state = {0};

	result("nquery", res_nquery(&state, name, 1, 1, room, sizeof room), room, &state.res_h_errno);
	result("nsearch", res_nsearch(&state, name, 1, 1, room, sizeof room), room, &state.res_h_errno);
	result("nquerydomain", res_nquerydomain(&state, "www", name, 1, 1, room, sizeof room), room, &state.res_h_errno);
	result("nsend", res_nsend(&state, query, sizeof query - 1, room, sizeof room), room, &h_errno);
	int (*older)(const char *, int, int, unsigned char *, int) = dlsym(RTLD_DEFAULT, "__res_query");
	result("older", older ? older(name, 1, 1, room, sizeof room) : -1, room, &h_errno);
#endif
	printf("\n");
	return 0;
}

#ifdef __GLIBC__
static volatile sig_atomic_t signalled;

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	signalled = info->si_code == SI_ASYNCNL ? info->si_value.sival_int : -1;
}

static pthread_mutex_t called = PTHREAD_MUTEX_INITIALIZER;

static void on_thread(union sigval value)
{
	(void)value;
	pthread_mutex_unlock(&called);
}

static int asynchronous(void)
{
	struct gaicb one = {.ar_name = name, .ar_service = "80"}, two = {.ar_name = "nothing at all"};
	struct gaicb *list[] = {&one, NULL, &two};
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
	struct sigevent signal = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value = {.sival_int = 42}};
	struct sigevent thread = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread};

	printf("wait=%d", getaddrinfo_a(GAI_WAIT, list, 3, NULL));
	printf(" one=%d two=%d", gai_error(&one), gai_error(&two));
	freeaddrinfo(one.ar_result);
	sigaction(SIGUSR1, &action, NULL);
	printf(" nowait=%d", getaddrinfo_a(GAI_NOWAIT, list, 1, &signal));
	gai_suspend((const struct gaicb *const *)list, 1, NULL);
	printf(" one=%d signal=%d", gai_error(&one), (int)signalled);
	freeaddrinfo(one.ar_result);
	pthread_mutex_lock(&called);
	printf(" thread=%d", getaddrinfo_a(GAI_NOWAIT, list, 1, &thread));
	pthread_mutex_lock(&called);
	printf(" one=%d\n", gai_error(&one));
	return 0;
}
#endif

/* all the ways to execute a program, each with an environment that has nothing of ours */

static int executed(const char *how)
{
	char *nothing[] = {"PATH=/usr/bin:/bin", "LD_PRELOAD=libnothing.so", NULL}, **environment = nothing;
	char *argv[] = {arguments[0], "child", arguments[2], arguments[3], arguments[4], NULL}, line[1024];
	const char *self = arguments[0];
	struct rlimit limit = {.rlim_cur = 64, .rlim_max = 128};
	posix_spawn_file_actions_t actions;
	int fd = open(self, O_RDONLY | O_CLOEXEC), status = 0, spawned = -1;
	pid_t child = 0;

	nothing[1] = NULL;
	snprintf(line, sizeof line, "%s child %s %s %s", self, arguments[2], arguments[3], arguments[4]);
	fflush(stdout);
	if (!strcmp(how, "posix_spawn"))
		spawned = posix_spawn(&child, self, NULL, NULL, argv, environment);
	else if (!strcmp(how, "posix_spawnp"))
		spawned = posix_spawnp(&child, self, NULL, NULL, argv, environment);
	else if (!strcmp(how, "folder")) { /* the name is one in the folder that the new program starts in */
		snprintf(line, sizeof line, "%.*s", (int)(strrchr(self, '/') - self), self);
		posix_spawn_file_actions_init(&actions);
		posix_spawn_file_actions_addchdir_np(&actions, line);
		spawned = posix_spawn(&child, strrchr(self, '/') + 1, &actions, NULL, argv, environment);
	}
	if (!spawned) {
		waitpid(child, &status, 0);
		return WEXITSTATUS(status);
	}
	clearenv();
	setenv("PATH", "/usr/bin:/bin", 1);
	if (!strcmp(how, "system"))
		return WEXITSTATUS(system(line));
	if (!strcmp(how, "popen")) {
		FILE *pipe = popen(line, "r");
		while (fgets(line, sizeof line, pipe))
			fputs(line, stdout);
		return WEXITSTATUS(pclose(pipe));
	}
	if (!strcmp(how, "execve"))
		execve(self, argv, environment);
	else if (!strcmp(how, "execv"))
		execv(self, argv);
	else if (!strcmp(how, "execvp"))
		execvp(self, argv);
	else if (!strcmp(how, "execvpe"))
		execvpe(self, argv, environment);
	else if (!strcmp(how, "execl"))
		execl(self, argv[0], argv[1], argv[2], argv[3], argv[4], (char *)NULL);
	else if (!strcmp(how, "execlp"))
		execlp(self, argv[0], argv[1], argv[2], argv[3], argv[4], (char *)NULL);
	else if (!strcmp(how, "execle"))
		execle(self, argv[0], argv[1], argv[2], argv[3], argv[4], (char *)NULL, environment);
	else if (!strcmp(how, "fexecve"))
		fexecve(fd, argv, environment);
	else if (!strcmp(how, "execveat"))
		syscall(SYS_execveat, fd, "", argv, environment, AT_EMPTY_PATH);
	else if (!strcmp(how, "syscall"))
		syscall(SYS_execve, self, argv, environment);
	else if (!strcmp(how, "search"))
		execlp("env", "env", self, argv[1], argv[2], argv[3], argv[4], (char *)NULL);
	else if (!strcmp(how, "nowhere"))
		execlp("no-such-program", "x", (char *)NULL);
	else if (!strcmp(how, "crowded")) { /* all descriptors are in use; `static` is named instead of the name */
		setrlimit(RLIMIT_NOFILE, &limit);
		while (fcntl(0, F_DUPFD_CLOEXEC, 0) >= 0)
			;
	}
	if (!strcmp(how, "static") || !strcmp(how, "crowded"))
		execl(arguments[4], "static", (char *)NULL);
	printf("errno=%d\n", errno);
	return 0;
}

static void *waiting(void *error)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	*(int *)error = reach(fd);
	return NULL;
}

/* A thread that is cancelled in connect(2) leaves nothing behind but its own socket. */
static int cancelled(void)
{
	int before = open_files(), error = -1;
	pthread_t thread;
	void *end;

	pthread_create(&thread, NULL, waiting, &error);
	while (open_files() < before + 2) /* its socket, and ours to the supervisor */
		usleep(1000);
	pthread_cancel(thread);
	pthread_join(thread, &end);
	printf("cancelled=%d error=%d more=%d\n", end == PTHREAD_CANCELED, error, open_files() - before);
	return 0;
}

/* All descriptors that the program allows itself are in use. */
static int full(void)
{
	struct rlimit limit = {.rlim_cur = 64, .rlim_max = 128};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	setrlimit(RLIMIT_NOFILE, &limit);
	while (dup(0) >= 0)
		;
	printf("connect=%d", reach(fd));
	getrlimit(RLIMIT_NOFILE, &limit);
	printf(" limit=%d more=%d\n", (int)limit.rlim_cur, answer(dup(0)));
	return 0;
}

static int deep(void)
{
	void *module = dlopen(name, RTLD_NOW | RTLD_LOCAL | 8 /* RTLD_DEEPBIND */);
	int (*call)(struct sockaddr_in *) = module ? dlsym(module, "module_connect") : NULL;

	printf("connect=%d\n", call ? call(&destination) : -1);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	const char *what = argv[1];
	arguments = argv;
	destination = at(argv[2], atoi(argv[3]));
	name = argv[4];
	if (!strcmp(what, "early"))
		return printf("early=%d\n", early) < 0;
	if (!strcmp(what, "child"))
		return printf("connect=%d\n", plain()) < 0;
	if (!strcmp(what, "errno"))
		return errnos();
	if (!strcmp(what, "raw"))
		return raw();
	if (!strcmp(what, "datagrams"))
		return datagrams();
	if (!strcmp(what, "resolver"))
		return resolver();
#ifdef __GLIBC__
	if (!strcmp(what, "asynchronous"))
		return asynchronous();
#endif
	if (!strncmp(what, "exec:", 5))
		return executed(what + 5);
	if (!strcmp(what, "cancelled"))
		return cancelled();
	if (!strcmp(what, "full"))
		return full();
	if (!strcmp(what, "deep"))
		return deep();
	if (!strcmp(what, "closed")) {
		syscall(SYS_close_range, 3, ~0U, 0);
		return printf("connect=%d\n", plain()) < 0;
	}
	if (!strcmp(what, "elsewhere")) { /* another root directory, another user */
		int error = chroot("/proc/self/fdinfo") || chdir("/") ? errno : 0;
		int user = answer(setuid(65534));
		return printf("chroot=%d setuid=%d connect=%d\n", error, user, plain()) < 0;
	}
	return 2;
}
