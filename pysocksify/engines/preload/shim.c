/*
 * The preload engine's shim: calls of libc that open ways out are handed to the supervisor (engines/handover/wire.py).
 *
 * Theory of operation. Each hooked call that concerns us becomes one request on a connection of its own to the
 * supervisor's abstract Unix socket: the program's own descriptor goes along (SCM_RIGHTS), the reply says the errno, or
 * that the kernel may perform the call. Nothing is kept: no descriptor, no thread, no memory, no state but what the
 * environment said. So a fork, an exec, a chroot, another user and close_range(2) change nothing.
 *
 * Calls that may be made in a signal's handler, after vfork(2) or before constructors use raw system calls and the
 * stack only. errno is touched by failures alone. What libc makes of names (lists, services, scopes) libc itself makes:
 * it's given the addresses as numbers. Where the supervisor can't be reached, or its place isn't known, calls fail.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#pragma GCC visibility push(default) /* each function that isn't static is a hook */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <resolv.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifdef __GLIBC__ /* whose prototypes have transparent unions */
#define SOCKADDR __SOCKADDR_ARG
#define CONST_SOCKADDR __CONST_SOCKADDR_ARG
#define PLAIN(address) ((address).__sockaddr__)
#define MESSAGE_FLAGS int
#define STATE_FLAGS (AI_V4MAPPED | AI_ADDRCONFIG) /* of getaddrinfo() without hints */
#pragma weak __pthread_register_cancel /* before glibc 2.34 they're there only where there are threads */
#pragma weak __pthread_unregister_cancel
#pragma weak __pthread_unwind_next
#pragma weak pthread_create
#define CANCELLABLE (__pthread_register_cancel != NULL)
#else
#define SOCKADDR struct sockaddr *restrict
#define CONST_SOCKADDR const struct sockaddr *
#define PLAIN(address) (address)
#define MESSAGE_FLAGS unsigned
#define STATE_FLAGS 0
#define CANCELLABLE 1
#endif
#ifndef NETDB_INTERNAL /* musl */
#define NETDB_INTERNAL -1
#endif
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif
#define ALIAS(other, name) __asm__(".globl " #other "\n.set " #other ", " #name "\n");

#define VARIABLE "PYSOCKSIFY_HANDOVER="
#define PRELOAD "LD_PRELOAD="
#define SHIM "/pysocksify/engines/preload/shim-"

enum {
	OP_CONNECT = 1, OP_INTERRUPTED, OP_PEER, OP_ERROR, OP_SOCKET, OP_SEND,
	OP_SOURCE, OP_NAME, OP_POINTER, OP_DNS, OP_EXEC, OP_PATH, OP_REFUSED
};
enum { ANSWER, PROCEED, REDIRECT };
enum { UNKNOWN, ON, ASIDE, LOST };

struct head {
	uint32_t magic, op;
	int32_t tid;
	uint32_t length;
	uint8_t token[16];
};

struct reply {
	int32_t error;
	uint32_t verdict, length;
};

struct request {
	uint32_t op;
	int fd; /* goes along, or -1 */
	struct iovec part[2];
	void *room; /* for the reply's payload */
	size_t size, got;
	int given; /* the descriptor that came with the reply */
};

struct entry {
	uint32_t family;
	uint8_t address[16];
};

struct names { /* the reply to a NAME */
	uint32_t count;
	struct entry entry[102]; /* the canonical name follows the last one that is there */
};

static int standing;
static struct sockaddr_un supervisor = {.sun_family = AF_UNIX};
static socklen_t supervisor_size;
static uint8_t token[16];
static char variable[256];

#define EVERYWHERE(X)                                                                                                  \
	X(connect) X(getpeername) X(getsockopt) X(socket) X(sendto) X(sendmsg) X(sendmmsg) X(recvfrom) X(recvmsg)      \
	X(recvmmsg) X(syscall) X(getaddrinfo) X(freeaddrinfo) X(getnameinfo) X(gethostbyname2_r) X(gethostbyaddr_r)    \
	X(execve) X(execvpe) X(fexecve) X(posix_spawn) X(posix_spawnp) X(system) X(popen) X(dlopen) X(res_query)       \
	X(res_search) X(res_send)
#ifdef __GLIBC__
#undef res_query
#undef res_search
#undef res_querydomain
#undef res_send
#undef res_nquery
#undef res_nsearch
#undef res_nquerydomain
#undef res_nsend
#if !__GLIBC_PREREQ(2, 34) /* where programs and libresolv know them as __res_query() and so on */
int res_query(const char *, int, int, uint8_t *, int), res_search(const char *, int, int, uint8_t *, int);
int res_send(const uint8_t *, int, uint8_t *, int), res_nsend(res_state, const uint8_t *, int, uint8_t *, int);
int res_nquery(res_state, const char *, int, int, uint8_t *, int);
int res_nsearch(res_state, const char *, int, int, uint8_t *, int);
#endif
#define REALS(X) EVERYWHERE(X) X(res_nquery) X(res_nsearch) X(res_nsend)
#else
#define REALS(X) EVERYWHERE(X)
#endif
#define DECLARE(name) static __typeof__(name) *real_##name;
REALS(DECLARE)

/* system calls without libc: neither errno, nor a cancellation point, nor another hook */
static long raw(long number, long a, long b, long c, long d, long e, long f)
{
#if defined __x86_64__ && defined __LP64__
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "+a"(number)
			 : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return number;
#elif defined __aarch64__
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#else
	int before = errno;
	long result = real_syscall ? real_syscall(number, a, b, c, d, e, f) : (errno = ENOSYS, -1);
	result = result == -1 ? -errno : result;
	errno = before;
	return result;
#endif
}

#define RAW6(number, a, b, c, d, e, f, ...) raw(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define RAW(...) RAW6(__VA_ARGS__, 0, 0, 0, 0, 0, 0)

static long failed(long result)
{
	if (result >= 0)
		return result;
	errno = (int)-result;
	return -1;
}

static int hexadecimal(const char *text, uint8_t *bytes, int room)
{
	int size = 0;

	for (unsigned value; size < room && sscanf(text + 2 * size, "%2x", &value) == 1; size++)
		bytes[size] = (uint8_t)value;
	return size;
}

/* getenv() where libc has no environment yet, as before the first constructor. */
static const char *early_variable(void)
{
	static char entry[sizeof variable];
	char chunk[512];
	long file = RAW(SYS_openat, AT_FDCWD, "/proc/self/environ", O_RDONLY | O_CLOEXEC), count;
	size_t size = 0;

	while ((count = RAW(SYS_read, file, chunk, sizeof chunk)) > 0)
		for (long i = 0; i < count; i++) {
			if (size < sizeof entry)
				entry[size++] = chunk[i];
			if (!chunk[i] && size < sizeof entry && !strncmp(entry, VARIABLE, sizeof VARIABLE - 1)) {
				RAW(SYS_close, file);
				return entry + sizeof VARIABLE - 1;
			}
			size = chunk[i] ? size : 0;
		}
	RAW(SYS_close, file);
	return NULL;
}

/* Once, before main() at the latest: afterwards nothing is looked up that takes a lock or memory. */
__attribute__((constructor)) static void prepare(void)
{
	static int preparing;
	int before = errno;

	if (standing || preparing)
		return;
	preparing = 1;
#define FIND(name)                                                                                                     \
	if (!(real_##name = (__typeof__(real_##name))dlsym(RTLD_NEXT, #name)))                                         \
		real_##name = (__typeof__(real_##name))dlsym(RTLD_NEXT, "__" #name);
	REALS(FIND)
	const char *value = environ ? getenv("PYSOCKSIFY_HANDOVER") : early_variable(), *colon = value ? strchr(value, ':') : NULL;
	int now = value && !*value ? ASIDE : LOST;
	if (colon && colon[1] && strlen(value) < sizeof variable - sizeof VARIABLE) {
		int size = (int)(colon - value) / 2, most = (int)sizeof supervisor.sun_path - 1;

		size = hexadecimal(value, (uint8_t *)supervisor.sun_path + 1, size < most ? size : most);
		supervisor_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)size);
		hexadecimal(colon + 1, token, sizeof token);
		strcpy(stpcpy(variable, VARIABLE), value);
		now = ON;
	}
	__atomic_store_n(&standing, now, __ATOMIC_RELEASE);
	preparing = 0;
	errno = before;
}

static int aside(void)
{
	if (!__atomic_load_n(&standing, __ATOMIC_ACQUIRE))
		prepare();
	return standing == ASIDE;
}

static int number_of(int fd, int option)
{
	int value = 0;
	socklen_t size = sizeof value;
	long error = RAW(SYS_getsockopt, fd, SOL_SOCKET, option, &value, &size);

	return error < 0 ? (int)error : value;
}

static int is_inet(int fd)
{
	int domain = aside() ? AF_UNSPEC : number_of(fd, SO_DOMAIN);

	return domain == AF_INET || domain == AF_INET6;
}

/* A connection to the supervisor. A program may have all the descriptors that it allows itself: one more, for us. */
static int reach_supervisor(void)
{
	struct rlimit limit, raised;
	long line = standing == ON ? RAW(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0) : -ECONNREFUSED, error;

	if (line == -EMFILE && !RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &limit)) {
		raised = (struct rlimit){limit.rlim_cur + 64 < limit.rlim_max ? limit.rlim_cur + 64 : limit.rlim_max,
					 limit.rlim_max};
		RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, &raised, NULL);
		line = RAW(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, &limit, NULL);
	}
	if (line < 0)
		return (int)line;
	do
		error = RAW(SYS_connect, line, &supervisor, supervisor_size);
	while (error == -EINTR);
	if (!error)
		return (int)line;
	RAW(SYS_close, line);
	return -ECONNREFUSED;
}

static void hang_up(void *line)
{
	RAW(SYS_close, (long)line);
}

/* The wait of a connect(2), which ends when the thread is cancelled, as the kernel's own does. */
static long wait_cancellable(int line, struct msghdr *message)
{
	int before = errno;
	long count;

	pthread_cleanup_push(hang_up, (void *)(long)line);
	count = real_recvmsg(line, message, 0);
	if (count < 0)
		count = -errno;
	pthread_cleanup_pop(0);
	errno = before;
	return count;
}

/* One request and its reply: the verdict, or an errno, negative. */
static int ask(struct request *request)
{
	struct head head = {0x70736b31, request->op, (int32_t)RAW(SYS_gettid),
			    (uint32_t)(request->part[0].iov_len + request->part[1].iov_len), {0}};
	struct reply reply = {.error = ECONNREFUSED};
	struct iovec out[3] = {{&head, sizeof head}, request->part[0], request->part[1]};
	struct iovec in[2] = {{&reply, sizeof reply}, {request->room, request->size}};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} rights = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct msghdr question = {.msg_iov = out, .msg_iovlen = 3}, answer = {.msg_iov = in, .msg_iovlen = 2};
	int line = reach_supervisor(), waits = request->op == OP_CONNECT;
	long count;

	if (line < 0)
		return line;
	memcpy(head.token, token, sizeof token);
	memcpy(CMSG_DATA(&rights.header), &request->fd, sizeof(int));
	if (request->fd >= 0)
		question.msg_control = &rights, question.msg_controllen = sizeof rights;
	count = RAW(SYS_sendmsg, line, &question, MSG_NOSIGNAL);
	if (count == -EFAULT || count == -EBADF) {
		RAW(SYS_close, line);
		return (int)count;
	}
	answer.msg_control = &rights, answer.msg_controllen = sizeof rights;
	do {
		if (waits && real_recvmsg && CANCELLABLE)
			count = wait_cancellable(line, &answer);
		else
			count = RAW(SYS_recvmsg, line, &answer, MSG_CMSG_CLOEXEC);
		if (count == -EINTR && waits) { /* it gives the wait up, unless the outcome is on its way */
			head.op = OP_INTERRUPTED, head.length = 0, waits = 0;
			question = (struct msghdr){.msg_iov = out, .msg_iovlen = 1};
			RAW(SYS_sendmsg, line, &question, MSG_NOSIGNAL);
		}
	} while (count == -EINTR);
	RAW(SYS_close, line);
	request->got = count > (long)sizeof reply ? (size_t)count - sizeof reply : 0;
	request->given = -1;
	if (answer.msg_controllen >= CMSG_LEN(sizeof(int)) && rights.header.cmsg_type == SCM_RIGHTS)
		memcpy(&request->given, CMSG_DATA(&rights.header), sizeof(int));
	if (count < (long)sizeof reply)
		return -ECONNREFUSED;
	return reply.error ? -reply.error : (int)reply.verdict;
}

/* connect(2), and what becomes of other sockets that connect */

static long kernel_connect(int fd, const struct sockaddr *address, socklen_t size)
{
	int before = errno;
	long result;

	if (!real_connect)
		return RAW(SYS_connect, fd, address, size);
	result = real_connect(fd, address, size);
	if (result < 0)
		result = -errno;
	errno = before;
	return result;
}

static long reach(int fd, const struct sockaddr *address, socklen_t size)
{
	struct request request = {.op = OP_CONNECT, .fd = fd, .part = {{(void *)address, size}}};
	int domain = aside() ? AF_UNSPEC : number_of(fd, SO_DOMAIN), verdict;

	if (domain == AF_UNIX && size > sizeof(sa_family_t) && size <= sizeof(struct sockaddr_un)) {
		request.op = OP_PATH, request.fd = -1;
		request.part[0] = (struct iovec){(char *)address + sizeof(sa_family_t), size - sizeof(sa_family_t)};
	} else if (domain != AF_INET && domain != AF_INET6) {
		return kernel_connect(fd, address, size);
	}
	if (size > sizeof(struct sockaddr_storage))
		return -EINVAL;
	verdict = ask(&request);
	return verdict == PROCEED ? kernel_connect(fd, address, size) : verdict;
}

int connect(int fd, CONST_SOCKADDR address, socklen_t size)
{
	return (int)failed(reach(fd, PLAIN(address), size));
}

int socket(int family, int type, int protocol)
{
	int32_t arguments[3] = {family, type, protocol};
	struct request request = {.op = OP_SOCKET, .fd = -1, .part = {{arguments, sizeof arguments}}};
	int inet = family == AF_INET || family == AF_INET6, base = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC), verdict;

	if (aside() || family == AF_UNIX || family == AF_NETLINK || family == AF_ALG ||
	    (inet && base == SOCK_STREAM && (!protocol || protocol == IPPROTO_TCP)))
		return real_socket ? real_socket(family, type, protocol) : (int)failed(RAW(SYS_socket, family, type, protocol));
	verdict = ask(&request);
	if (verdict < 0 || request.given < 0)
		return (int)failed(verdict < 0 ? verdict : -EMFILE); /* no room for it here */
	if (!(type & SOCK_CLOEXEC))
		RAW(SYS_fcntl, request.given, F_SETFD, 0);
	return request.given;
}

static void give(void *to, socklen_t *size, const void *value, size_t length)
{
	memcpy(to, value, *size < length ? *size : length);
	*size = (socklen_t)length;
}

int getpeername(int fd, SOCKADDR address, socklen_t *restrict size)
{
	struct sockaddr_storage peer;
	struct request request = {.op = OP_PEER, .fd = fd, .room = &peer, .size = sizeof peer};

	if (is_inet(fd) && ask(&request) == ANSWER && (int)*size >= 0) {
		give(PLAIN(address), size, &peer, request.got);
		return 0;
	}
	return real_getpeername ? real_getpeername(fd, address, size)
				: (int)failed(RAW(SYS_getpeername, fd, PLAIN(address), size));
}

int getsockopt(int fd, int level, int option, void *restrict value, socklen_t *restrict size)
{
	int32_t error;
	struct request request = {.op = OP_ERROR, .fd = fd, .room = &error, .size = sizeof error};

	if (level == SOL_SOCKET && option == SO_ERROR && is_inet(fd) && ask(&request) == ANSWER && (int)*size >= 0) {
		*size = *size < sizeof error ? *size : (socklen_t)sizeof error;
		give(value, size, &error, *size);
		return 0;
	}
	return real_getsockopt ? real_getsockopt(fd, level, option, value, size)
			       : (int)failed(RAW(SYS_getsockopt, fd, level, option, value, size));
}

/* Sends that name a destination: TCP's connect, UDP's may be sent elsewhere. 0, or an errno, negative. */
static long on_its_way(int fd, struct msghdr *message, int *flags, struct sockaddr_storage *elsewhere)
{
	struct request request = {.op = OP_SEND, .fd = fd, .room = elsewhere, .size = sizeof *elsewhere};
	int named = message->msg_name && message->msg_namelen, type, verdict;

	if ((!named && !message->msg_controllen && !(*flags & MSG_FASTOPEN)) || !is_inet(fd))
		return 0;
	type = number_of(fd, SO_TYPE);
	if (type == SOCK_STREAM && *flags & MSG_FASTOPEN) {
		long error = named ? reach(fd, message->msg_name, message->msg_namelen) : -EDESTADDRREQ;

		*flags &= ~MSG_FASTOPEN;
		message->msg_name = NULL, message->msg_namelen = 0;
		return error;
	}
	if (type == SOCK_STREAM)
		return 0;
	if (named)
		request.part[0] = (struct iovec){message->msg_name, message->msg_namelen};
	verdict = ask(&request);
	if (verdict == REDIRECT) {
		message->msg_name = request.got ? elsewhere : NULL;
		message->msg_namelen = (socklen_t)request.got;
		message->msg_control = NULL, message->msg_controllen = 0;
	}
	return verdict < 0 ? verdict : 0;
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, CONST_SOCKADDR to, socklen_t to_size)
{
	struct sockaddr_storage elsewhere;
	struct msghdr message = {.msg_name = (void *)PLAIN(to), .msg_namelen = to_size};
	long error = on_its_way(fd, &message, &flags, &elsewhere);

	if (error)
		return failed(error);
	return real_sendto ? real_sendto(fd, data, size, flags, (struct sockaddr *)message.msg_name, message.msg_namelen)
			   : failed(RAW(SYS_sendto, fd, data, size, flags, message.msg_name, message.msg_namelen));
}

ssize_t sendmsg(int fd, const struct msghdr *given, int flags)
{
	struct sockaddr_storage elsewhere;
	struct msghdr message = *given;
	long error = on_its_way(fd, &message, &flags, &elsewhere);

	if (error)
		return failed(error);
	return real_sendmsg ? real_sendmsg(fd, &message, flags) : failed(RAW(SYS_sendmsg, fd, &message, flags));
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, MESSAGE_FLAGS flags)
{
	unsigned sent = 0;
	int inet = is_inet(fd), left = (int)flags;

	if (inet && count && number_of(fd, SO_TYPE) == SOCK_STREAM) {
		struct msghdr first = messages->msg_hdr;
		long error = on_its_way(fd, &first, &left, NULL);

		if (error)
			return (int)failed(error);
		count = left == (int)flags ? count : 1;
		inet = 0;
	}
	if (!inet)
		return real_sendmmsg ? real_sendmmsg(fd, messages, count, (MESSAGE_FLAGS)left)
				     : (int)failed(RAW(SYS_sendmmsg, fd, messages, count, left));
	for (; sent < count && sent < 1024; sent++) {
		ssize_t size = sendmsg(fd, &messages[sent].msg_hdr, left);

		if (size < 0)
			return sent ? (int)sent : -1;
		messages[sent].msg_len = (unsigned)size;
	}
	return (int)sent;
}

/* A datagram's source that is on loopback may stand for another one. */
static void show_source(int fd, void *name, socklen_t room, socklen_t *size)
{
	struct sockaddr_storage shown;
	struct request request = {.op = OP_SOURCE, .fd = fd, .part = {{name, *size}}, .room = &shown, .size = sizeof shown};
	struct sockaddr_in *four = name;
	struct sockaddr_in6 *six = name;

	if (!name || *size < sizeof *four || *size > room || standing != ON)
		return;
	if (four->sin_family == AF_INET) {
		if (*(uint8_t *)&four->sin_addr != 127)
			return;
	} else if (six->sin6_family != AF_INET6 || *size < sizeof *six ||
		   !(IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) ||
		     (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr) && six->sin6_addr.s6_addr[12] == 127))) {
		return;
	}
	if (ask(&request) == ANSWER) {
		*size = room;
		give(name, size, &shown, request.got);
	}
}

ssize_t recvfrom(int fd, void *restrict data, size_t size, int flags, SOCKADDR from, socklen_t *restrict from_size)
{
	socklen_t room = !aside() && PLAIN(from) && from_size ? *from_size : 0;
	ssize_t count = real_recvfrom ? real_recvfrom(fd, data, size, flags, from, from_size)
				      : failed(RAW(SYS_recvfrom, fd, data, size, flags, PLAIN(from), from_size));

	if (count >= 0 && room)
		show_source(fd, PLAIN(from), room, from_size);
	return count;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	socklen_t room = aside() || !message->msg_name ? 0 : message->msg_namelen;
	ssize_t count = real_recvmsg ? real_recvmsg(fd, message, flags) : failed(RAW(SYS_recvmsg, fd, message, flags));

	if (count >= 0 && room)
		show_source(fd, message->msg_name, room, &message->msg_namelen);
	return count;
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, MESSAGE_FLAGS flags, struct timespec *limit)
{
	socklen_t room[1024];
	int taken;

	count = count < 1024 ? count : 1024;
	for (unsigned i = 0; i < count; i++)
		room[i] = aside() || !messages[i].msg_hdr.msg_name ? 0 : messages[i].msg_hdr.msg_namelen;
	taken = real_recvmmsg ? real_recvmmsg(fd, messages, count, flags, limit)
			      : (int)failed(RAW(SYS_recvmmsg, fd, messages, count, flags, limit));
	for (int i = 0; i < taken; i++)
		if (room[i])
			show_source(fd, messages[i].msg_hdr.msg_name, room[i], &messages[i].msg_hdr.msg_namelen);
	return taken;
}

/* names */

static int ask_names(const char *name, int family, struct names *names)
{
	int32_t wanted = family;
	struct request request = {.op = OP_NAME, .fd = -1, .part = {{&wanted, sizeof wanted}, {(void *)name, strlen(name)}},
				  .room = names, .size = sizeof *names - 1};
	int verdict = ask(&request);

	if (verdict >= 0 && (request.got < sizeof names->count || request.got - sizeof names->count < names->count * sizeof names->entry[0]))
		return -EIO;
	((char *)names)[request.got] = '\0'; /* ends the canonical name */
	return verdict;
}

static int as_gai(int verdict)
{
	return verdict == -ENOENT ? EAI_NONAME : verdict == -ENODATA ? EAI_NODATA : verdict == -EAGAIN ? EAI_AGAIN : EAI_FAIL;
}

static int as_h_errno(int verdict)
{
	return verdict == -ENOENT ? HOST_NOT_FOUND : verdict == -ENODATA ? NO_DATA : verdict == -EAGAIN ? TRY_AGAIN : NO_RECOVERY;
}

/* The canonical name, such that the freeaddrinfo() that libc has, or ours below, frees it. */
#ifdef __GLIBC__
#define MARK 0
#else
#define MARK 8
static const char mark[MARK] = "\377shim\001\002\003";

void freeaddrinfo(struct addrinfo *list)
{
	/* musl counts the entries of a list off its last one's block: each by itself, since lists were joined */
	for (struct addrinfo *next; list; list = next) {
		next = list->ai_next;
		list->ai_next = NULL;
		if (list->ai_canonname && !memcmp(list->ai_canonname - MARK, mark, MARK))
			free(list->ai_canonname - MARK);
		real_freeaddrinfo(list);
	}
}
#endif

static char *canonical(const char *name)
{
	char *copy = malloc(MARK + strlen(name) + 1);

#if MARK
	if (copy)
		memcpy(copy, mark, MARK);
#endif
	return copy ? strcpy(copy + MARK, name) : NULL;
}

static int numeric_list(const struct names *names, const char *service, const struct addrinfo *hints, struct addrinfo **list)
{
	struct addrinfo numeric = *hints, **end = list;
	int error = EAI_NODATA;

	numeric.ai_flags = (hints->ai_flags | AI_NUMERICHOST) & ~AI_CANONNAME;
	for (uint32_t i = 0; i < names->count; i++) {
		const struct entry *entry = &names->entry[i];
		char text[INET6_ADDRSTRLEN + 8] = "::ffff:";
		int mapped = hints->ai_family == AF_INET6 && entry->family == AF_INET;

		inet_ntop((int)entry->family, entry->address, text + (mapped ? 7 : 0), INET6_ADDRSTRLEN);
		/* one that libc refuses is of a family that AI_ADDRCONFIG leaves out */
		int outcome = real_getaddrinfo(text, service, &numeric, end);
		if (outcome)
			*end = NULL, error = outcome;
		for (; *end; end = &(*end)->ai_next)
			(*end)->ai_flags = (*end)->ai_flags ? hints->ai_flags : 0;
	}
	return *list ? 0 : error;
}

/* glibc names the first entry when it's asked to, musl all, always. */
static void set_canonical(struct addrinfo *list, int wanted, const char *name)
{
	for (; list && (MARK || wanted); list = MARK ? list->ai_next : NULL)
		list->ai_canonname = canonical(name);
}

int getaddrinfo(const char *restrict host, const char *restrict service, const struct addrinfo *restrict given,
		struct addrinfo **restrict result)
{
	struct addrinfo hints = {.ai_flags = STATE_FLAGS}, *list = NULL;
	struct names names;
	int before = errno, error, mapped;

	if (!real_getaddrinfo)
		prepare();
	if (given)
		hints = *given;
	if (aside() || !host || hints.ai_flags & AI_NUMERICHOST)
		return real_getaddrinfo(host, service, given, result);
	hints.ai_flags |= AI_NUMERICHOST;
	error = real_getaddrinfo(host, service, &hints, &list);
	hints.ai_flags &= ~AI_NUMERICHOST;
	for (struct addrinfo *each = error ? NULL : list; each; each = each->ai_next)
		each->ai_flags &= ~AI_NUMERICHOST;
	if (error == EAI_NONAME) { /* nothing was wrong but that it's a name */
		mapped = hints.ai_family == AF_INET6 && hints.ai_flags & AI_V4MAPPED;
		error = ask_names(host, mapped && hints.ai_flags & AI_ALL ? AF_UNSPEC : hints.ai_family, &names);
		if ((error == -ENODATA || error == -ENOENT) && mapped)
			error = ask_names(host, AF_INET, &names);
		list = NULL;
		error = error < 0 ? as_gai(error) : numeric_list(&names, service, &hints, &list);
		if (!error)
			set_canonical(list, hints.ai_flags & AI_CANONNAME, (char *)&names.entry[names.count]);
		errno = before;
	}
	if (!error)
		*result = list;
	return error;
}

#ifdef __GLIBC__
/* Done before it returns; who wants to be told is told at once. */
int getaddrinfo_a(int mode, struct gaicb *list[restrict], int count, struct sigevent *restrict told)
{
	pthread_t thread;
	pthread_attr_t attributes;

	for (int i = 0; i < count; i++)
		if (list[i])
			list[i]->__return = getaddrinfo(list[i]->ar_name, list[i]->ar_service, list[i]->ar_request,
							&list[i]->ar_result);
	if (mode == GAI_NOWAIT && told && told->sigev_notify == SIGEV_SIGNAL) {
		siginfo_t info = {.si_signo = told->sigev_signo, .si_code = SI_ASYNCNL};

		info.si_pid = getpid(), info.si_uid = getuid(), info.si_value = told->sigev_value;
		RAW(SYS_rt_sigqueueinfo, info.si_pid, info.si_signo, &info);
	} else if (mode == GAI_NOWAIT && told && told->sigev_notify == SIGEV_THREAD) {
		pthread_attr_init(&attributes);
		pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
		if (pthread_create(&thread, told->sigev_notify_attributes ? told->sigev_notify_attributes : &attributes,
				   (void *(*)(void *))(void (*)(void))told->sigev_notify_function, told->sigev_value.sival_ptr))
			return EAI_AGAIN;
	}
	return 0;
}
#endif

/* A struct hostent in the caller's buffer: no aliases, these addresses, this name. ERANGE where it doesn't fit. */
static int host_entry(struct hostent *host, char *buffer, size_t size, const char *name, int family,
		      const struct entry *entries, uint32_t count)
{
	size_t skip = -(uintptr_t)buffer % sizeof(char *), each = family == AF_INET ? 4 : 16;
	size_t needed = skip + (count + 2) * sizeof(char *) + count * each + strlen(name) + 1;
	char **pointers = (char **)(void *)(buffer + skip), *bytes = (char *)(pointers + count + 2);

	if (size < needed)
		return ERANGE;
	*host = (struct hostent){.h_aliases = pointers, .h_addrtype = family, .h_length = (int)each, .h_addr_list = pointers + 1};
	pointers[0] = pointers[count + 1] = NULL;
	for (uint32_t i = 0; i < count; i++, bytes += each)
		host->h_addr_list[i] = memcpy(bytes, entries[i].address, each);
	host->h_name = strcpy(bytes, name);
	return 0;
}

int gethostbyname2_r(const char *restrict name, int family, struct hostent *restrict host, char *restrict buffer,
		     size_t size, struct hostent **restrict result, int *restrict error)
{
	struct names names = {.count = 1};
	int verdict = ANSWER, before = errno;
	const char *own = name;

	if (aside())
		return real_gethostbyname2_r(name, family, host, buffer, size, result, error);
	*result = NULL;
	if (!inet_pton(family, name, names.entry[0].address) &&
	    (family != AF_INET || !inet_aton(name, (struct in_addr *)(void *)names.entry[0].address))) {
		verdict = ask_names(name, family, &names);
		own = (char *)&names.entry[names.count];
	}
	errno = before;
	if (verdict < 0) {
		*error = as_h_errno(verdict);
		return *error == TRY_AGAIN ? EAGAIN : *error == NO_RECOVERY ? EBADMSG : 0;
	}
	if (host_entry(host, buffer, size, own, family, names.entry, names.count)) {
		*error = NETDB_INTERNAL;
		return errno = ERANGE;
	}
	*result = host;
	return 0;
}

int gethostbyname_r(const char *restrict name, struct hostent *restrict host, char *restrict buffer, size_t size,
		    struct hostent **restrict result, int *restrict error)
{
	return gethostbyname2_r(name, AF_INET, host, buffer, size, result, error);
}

static struct hostent found_host;
static char found_buffer[8192]; /* holds what a reply can */

struct hostent *gethostbyname2(const char *name, int family)
{
	struct hostent *result;

	gethostbyname2_r(name, family, &found_host, found_buffer, sizeof found_buffer, &result, &h_errno);
	return result;
}

struct hostent *gethostbyname(const char *name)
{
	return gethostbyname2(name, AF_INET);
}

/* The name of an address; 0, or an errno, negative. */
static int ask_pointer(const void *sockaddr, size_t size, char *name, size_t room)
{
	struct request request = {.op = OP_POINTER, .fd = -1, .part = {{(void *)sockaddr, size}}, .room = name, .size = room - 1};
	int verdict = ask(&request);

	name[request.got] = '\0';
	return verdict;
}

static int pointer_of(const void *address, socklen_t size, int family, char *name, size_t room)
{
	struct sockaddr_in four = {.sin_family = AF_INET};
	struct sockaddr_in6 six = {.sin6_family = AF_INET6};

	if (size != (family == AF_INET ? sizeof four.sin_addr : sizeof six.sin6_addr))
		return -EAFNOSUPPORT;
	memcpy(family == AF_INET ? (void *)&four.sin_addr : (void *)&six.sin6_addr, address, size);
	return family == AF_INET ? ask_pointer(&four, sizeof four, name, room) : ask_pointer(&six, sizeof six, name, room);
}

int gethostbyaddr_r(const void *restrict address, socklen_t length, int family, struct hostent *restrict host,
		    char *restrict buffer, size_t size, struct hostent **restrict result, int *restrict error)
{
	struct entry entry;
	char name[NI_MAXHOST];
	int before = errno, verdict;

	if (aside())
		return real_gethostbyaddr_r(address, length, family, host, buffer, size, result, error);
	*result = NULL;
	verdict = pointer_of(address, length, family, name, sizeof name);
	errno = before;
	if (verdict < 0) {
		*error = verdict == -EAFNOSUPPORT ? NO_RECOVERY : as_h_errno(verdict);
		return 0;
	}
	memcpy(entry.address, address, length);
	if (host_entry(host, buffer, size, name, family, &entry, 1)) {
		*error = NETDB_INTERNAL;
		return errno = ERANGE;
	}
	*result = host;
	return 0;
}

struct hostent *gethostbyaddr(const void *address, socklen_t length, int family)
{
	struct hostent *result;

	gethostbyaddr_r(address, length, family, &found_host, found_buffer, sizeof found_buffer, &result, &h_errno);
	return result;
}

int getnameinfo(const struct sockaddr *restrict address, socklen_t size, char *restrict host, socklen_t host_size,
		char *restrict service, socklen_t service_size, int flags)
{
	char name[NI_MAXHOST];
	int before = errno, verdict;

	if (!real_getnameinfo)
		prepare();
	if (!aside() && host && host_size && !(flags & NI_NUMERICHOST) && size >= sizeof *address &&
	    (address->sa_family == AF_INET || address->sa_family == AF_INET6)) {
		verdict = ask_pointer(address, size, name, sizeof name);
		errno = before;
		if (verdict >= 0 && strlen(name) >= host_size)
			return EAI_OVERFLOW;
		if (verdict >= 0) {
			strcpy(host, name);
			host = NULL, host_size = 0;
			if (!service || !service_size)
				return 0;
		} else if (flags & NI_NAMEREQD) {
			return EAI_NONAME;
		}
		flags |= NI_NUMERICHOST;
	}
	return real_getnameinfo(address, size, host, host_size, service, service_size, flags);
}

/* DNS messages. A search list needs none of libc's steps here: a name is asked for as it's meant. */

static int ask_dns(const uint8_t *query, size_t query_size, uint8_t *answer, int size)
{
	static const size_t most = 65535;
	struct request request = {.op = OP_DNS, .fd = -1, .part = {{(void *)query, query_size}}, .room = answer,
				  .size = (size_t)size < most ? (size_t)size : most};
	int verdict = size < 12 ? -EINVAL : ask(&request);

	return verdict < 0 ? verdict : verdict == PROCEED ? 0 : (int)request.got;
}

/* The question for a name (RFC 1035 section 4.1): its size, or 0 for what is no name. */
static size_t question(const char *name, int class, int type, uint8_t message[512])
{
	uint8_t *length = message + 12, *end = length + 1;

	memset(message, 0, 12);
	RAW(SYS_getrandom, message, 2, 0);
	message[2] = message[5] = 1; /* RD; one question */
	for (; *name; name++) {
		if (*name == '.' && end > length + 1)
			length = end++;
		else if (*name != '.' || name[1])
			*end++ = (uint8_t)(*name == '\\' && name[1] ? *++name : *name);
		*length = (uint8_t)(end - length - 1);
		if (*length > 63 || end - message > 12 + 254)
			return 0;
	}
	if (end == length + 1)
		end = length;
	*end++ = 0;
	*end++ = (uint8_t)(type >> 8), *end++ = (uint8_t)type, *end++ = (uint8_t)(class >> 8), *end++ = (uint8_t)class;
	return (size_t)(end - message);
}

/* res_query(3): the answer's size, 0 to let libc do it, or -1 with *error set (h_errno). */
static int query(const char *name, int class, int type, uint8_t *answer, int size, int *error)
{
	uint8_t message[512];
	size_t length = question(name, class, type, message);
	int count = length ? ask_dns(message, length, answer, size) : -EINVAL, code;

	if (!count)
		return 0;
	code = count < 0 ? -1 : answer[3] & 15;
	if (!code && (answer[6] || answer[7]))
		return count;
	*error = code < 0 ? NO_RECOVERY : !code ? NO_DATA : code == 3 ? HOST_NOT_FOUND : code == 2 ? TRY_AGAIN : NO_RECOVERY;
	return -1;
}

static const char *joined(const char *name, const char *domain, char room[NS_MAXDNAME])
{
	snprintf(room, NS_MAXDNAME, "%s%s%s", name, domain && *domain ? "." : "", domain ? domain : "");
	return room;
}

#define SYSTEM(real, ...) (real ? real(__VA_ARGS__) : (h_errno = NO_RECOVERY, -1))

int res_query(const char *name, int class, int type, uint8_t *answer, int size)
{
	int count = aside() ? 0 : query(name, class, type, answer, size, &h_errno);

	return count ? count : SYSTEM(real_res_query, name, class, type, answer, size);
}

int res_search(const char *name, int class, int type, uint8_t *answer, int size)
{
	int count = aside() ? 0 : query(name, class, type, answer, size, &h_errno);

	return count ? count : SYSTEM(real_res_search, name, class, type, answer, size);
}

int res_querydomain(const char *name, const char *domain, int class, int type, uint8_t *answer, int size)
{
	char room[NS_MAXDNAME];

	return res_query(joined(name, domain, room), class, type, answer, size);
}

int res_send(const uint8_t *message, int length, uint8_t *answer, int size)
{
	int count = aside() ? 0 : ask_dns(message, (size_t)length, answer, size);

	return count ? (int)failed(count) : SYSTEM(real_res_send, message, length, answer, size);
}

ALIAS(__res_query, res_query)
ALIAS(__res_search, res_search)
ALIAS(__res_querydomain, res_querydomain)
ALIAS(__res_send, res_send)

#ifdef __GLIBC__
int res_nquery(res_state state, const char *name, int class, int type, uint8_t *answer, int size)
{
	int count = aside() ? 0 : query(name, class, type, answer, size, &state->res_h_errno);

	return count ? count : SYSTEM(real_res_nquery, state, name, class, type, answer, size);
}

int res_nsearch(res_state state, const char *name, int class, int type, uint8_t *answer, int size)
{
	int count = aside() ? 0 : query(name, class, type, answer, size, &state->res_h_errno);

	return count ? count : SYSTEM(real_res_nsearch, state, name, class, type, answer, size);
}

int res_nquerydomain(res_state state, const char *name, const char *domain, int class, int type, uint8_t *answer, int size)
{
	char room[NS_MAXDNAME];

	return res_nquery(state, joined(name, domain, room), class, type, answer, size);
}

int res_nsend(res_state state, const uint8_t *message, int length, uint8_t *answer, int size)
{
	int count = aside() ? 0 : ask_dns(message, (size_t)length, answer, size);

	return count ? (int)failed(count) : SYSTEM(real_res_nsend, state, message, length, answer, size);
}

ALIAS(__res_nquery, res_nquery)
ALIAS(__res_nsearch, res_nsearch)
ALIAS(__res_nquerydomain, res_nquerydomain)
ALIAS(__res_nsend, res_nsend)
ALIAS(__connect, connect)

ssize_t __recvfrom_chk(int fd, void *restrict data, size_t size, size_t room, int flags, SOCKADDR from,
		       socklen_t *restrict from_size)
{
	if (size > room)
		__builtin_trap();
	return recvfrom(fd, data, size, flags, from, from_size);
}
#endif

/* exec: the new program must be one that the shim gets into, and its environment must say so */

struct execution {
	enum { EXECVE, EXECVPE, FEXECVE, EXECVEAT, SPAWN, SPAWNP } how;
	int fd;
	const char *path;
	char *const *argv, *const *environment;
	int flags;
	pid_t *pid;
	const posix_spawn_file_actions_t *actions;
	const posix_spawnattr_t *attributes;
};

static int perform(const struct execution *x, char *const *environment)
{
	switch (x->how) {
	case EXECVE:
		return real_execve ? real_execve(x->path, x->argv, environment)
				   : (int)failed(RAW(SYS_execve, x->path, x->argv, environment));
	case EXECVPE:
		return real_execvpe(x->path, x->argv, environment);
	case FEXECVE:
		return real_fexecve(x->fd, x->argv, environment);
	case EXECVEAT:
		return (int)failed(RAW(SYS_execveat, x->fd, x->path, x->argv, environment, x->flags));
	case SPAWN:
		return real_posix_spawn(x->pid, x->path, x->actions, x->attributes, x->argv, environment);
	default:
		return real_posix_spawnp(x->pid, x->path, x->actions, x->attributes, x->argv, environment);
	}
}

/* The file that an exec is about, opened with O_PATH, as PATH has it where that is asked; or an errno, negative. */
static int open_file(const struct execution *x, char path[PATH_MAX])
{
	const char *search = getenv("PATH"), *end;
	int flags = O_PATH | O_CLOEXEC | (x->how == EXECVEAT && x->flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0), fd;

	if (x->how == FEXECVE || (x->how == EXECVEAT && x->flags & AT_EMPTY_PATH && !*x->path))
		return (int)RAW(SYS_fcntl, x->fd, F_DUPFD_CLOEXEC, 0);
	if ((x->how != EXECVPE && x->how != SPAWNP) || strchr(x->path, '/')) {
		if (!memccpy(path, x->path, '\0', PATH_MAX))
			return -ENAMETOOLONG;
		return (int)RAW(SYS_openat, x->how == EXECVEAT ? x->fd : AT_FDCWD, path, flags);
	}
	for (search = search ? search : "/bin:/usr/bin"; *x->path; search = end + 1) {
		end = strchrnul(search, ':');
		size_t folder = (size_t)(end - search);
		if (folder + strlen(x->path) + 2 < PATH_MAX) {
			memcpy(path, search, folder);
			strcpy(stpcpy(path + folder, folder ? "/" : ""), x->path);
			fd = (int)RAW(SYS_openat, AT_FDCWD, path, flags | O_DIRECTORY);
			if (fd >= 0)
				RAW(SYS_close, fd);
			else if (!RAW(SYS_faccessat, AT_FDCWD, path, X_OK))
				return (int)RAW(SYS_openat, AT_FDCWD, path, flags);
		}
		if (!*end)
			break;
	}
	return -ENOENT;
}

/* Whether it may run, and the shim's object for it; 0, or an errno, negative. */
static int ask_object(const struct execution *x, char object[PATH_MAX])
{
	static const char text[] = "a program in a root directory or of a user that the shim's file isn't there for";
	char path[PATH_MAX] = "";
	struct request request = {.op = OP_EXEC, .room = object, .size = PATH_MAX - 1};
	struct request refused = {.op = OP_REFUSED, .fd = -1, .part = {{(void *)text, sizeof text - 1}}};
	int verdict;

	*object = '\0';
	request.fd = open_file(x, path);
	if (request.fd < 0)
		return 0; /* there's nothing to be executed, as the kernel is going to say */
	request.part[0] = (struct iovec){path, strlen(path)};
	verdict = ask(&request);
	RAW(SYS_close, request.fd);
	if (verdict < 0)
		return verdict == -ECONNREFUSED ? -EACCES : verdict;
	object[request.got] = '\0';
	if (!RAW(SYS_faccessat, AT_FDCWD, object, R_OK))
		return 0;
	ask(&refused);
	return -EACCES;
}

static const char *value_of(const char *entry, const char *name)
{
	return strncmp(entry, name, strlen(name)) ? NULL : entry + strlen(name);
}

/* Once more what LD_PRELOAD has of others', after our own object. */
static void preload_list(char *list, const char *object, const char *others)
{
	list = stpcpy(stpcpy(list, PRELOAD), object);
	for (size_t size; *others; others += size + (others[size] != '\0')) {
		size = strcspn(others, ": ");
		const char *ours = strstr(others, SHIM);
		if (size && !(ours && ours < others + size)) {
			*list++ = ':';
			list = mempcpy(list, others, size);
		}
	}
	*list = '\0';
}

/* As exec(3) or posix_spawn(3) has it: -1 and errno, or the errno itself. */
static int execute(const struct execution *x)
{
	const char *others = "", *value = NULL, *found;
	char object[PATH_MAX];
	size_t count = 0, kept = 0;
	int error = 0, stays_aside = aside();

	for (; x->environment && x->environment[count]; count++) {
		if ((found = value_of(x->environment[count], VARIABLE)) && !value)
			value = found;
		if ((found = value_of(x->environment[count], PRELOAD)))
			others = found;
	}
	stays_aside = stays_aside || (value && !*value);
	if (!stays_aside)
		error = ask_object(x, object);
	if (error) {
		errno = -error;
		return x->how >= SPAWN ? -error : -1;
	}
	if (stays_aside || !*object)
		return perform(x, x->environment);
	char *environment[count + 3], list[sizeof PRELOAD + strlen(object) + strlen(others) + 2];
	preload_list(list, object, others);
	for (size_t i = 0; i < count; i++)
		if (!value_of(x->environment[i], PRELOAD))
			environment[kept++] = x->environment[i];
	environment[kept++] = list;
	if (!value)
		environment[kept++] = variable;
	environment[kept] = NULL;
	return perform(x, environment);
}

int execve(const char *path, char *const argv[], char *const environment[])
{
	return execute(&(struct execution){.how = EXECVE, .path = path, .argv = argv, .environment = environment});
}

int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

int execvpe(const char *file, char *const argv[], char *const environment[])
{
	return execute(&(struct execution){.how = EXECVPE, .path = file, .argv = argv, .environment = environment});
}

int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

int fexecve(int fd, char *const argv[], char *const environment[])
{
	return execute(&(struct execution){.how = FEXECVE, .fd = fd, .argv = argv, .environment = environment});
}

int execveat(int fd, const char *path, char *const argv[], char *const environment[], int flags)
{
	return execute(&(struct execution){
		.how = EXECVEAT, .fd = fd, .path = path, .argv = argv, .environment = environment, .flags = flags});
}

int posix_spawn(pid_t *restrict pid, const char *restrict path, const posix_spawn_file_actions_t *actions,
		const posix_spawnattr_t *restrict attributes, char *const argv[restrict], char *const environment[restrict])
{
	return execute(&(struct execution){.how = SPAWN, .path = path, .argv = argv, .environment = environment, .pid = pid,
					   .actions = actions, .attributes = attributes});
}

int posix_spawnp(pid_t *restrict pid, const char *restrict file, const posix_spawn_file_actions_t *actions,
		 const posix_spawnattr_t *restrict attributes, char *const argv[restrict], char *const environment[restrict])
{
	return execute(&(struct execution){.how = SPAWNP, .path = file, .argv = argv, .environment = environment, .pid = pid,
					   .actions = actions, .attributes = attributes});
}

/* The arguments of an execl(), from `first` up to NULL, as an array on the stack; `last` is left behind them. */
#define ARGUMENTS(argv, first, last)                                                                                   \
	va_list last;                                                                                                  \
	size_t count_ = 1;                                                                                             \
	va_start(last, first);                                                                                         \
	while (va_arg(last, char *))                                                                                   \
		count_++;                                                                                              \
	va_end(last);                                                                                                  \
	char *argv[count_ + 1];                                                                                        \
	argv[0] = (char *)first;                                                                                       \
	va_start(last, first);                                                                                         \
	for (size_t i_ = 1; i_ <= count_; i_++)                                                                        \
		argv[i_] = va_arg(last, char *);

int execl(const char *path, const char *first, ...)
{
	ARGUMENTS(argv, first, last)
	va_end(last);
	return execve(path, argv, environ);
}

int execlp(const char *file, const char *first, ...)
{
	ARGUMENTS(argv, first, last)
	va_end(last);
	return execvpe(file, argv, environ);
}

int execle(const char *path, const char *first, ...)
{
	ARGUMENTS(argv, first, last)
	char **environment = va_arg(last, char **);
	va_end(last);
	return execve(path, argv, environment);
}

/* libc's own exec of a shell passes no hook: the environment is made right before it. */
static int may_call_shell(void)
{
	const struct execution shell = {.how = EXECVE, .path = "/bin/sh"};
	const char *others = getenv("LD_PRELOAD"), *value = getenv("PYSOCKSIFY_HANDOVER");
	char object[PATH_MAX];
	int error = aside() || (value && !*value) ? 0 : ask_object(&shell, object);

	if (error || aside() || (value && !*value) || !*object)
		return !failed(error);
	char list[sizeof PRELOAD + strlen(object) + (others ? strlen(others) : 0) + 2];
	preload_list(list, object, others ? others : "");
	if (!others || strcmp(others, list + sizeof PRELOAD - 1))
		setenv("LD_PRELOAD", list + sizeof PRELOAD - 1, 1);
	if (!value)
		setenv("PYSOCKSIFY_HANDOVER", variable + sizeof VARIABLE - 1, 1);
	return 1;
}

int system(const char *command)
{
	return may_call_shell() ? real_system(command) : -1;
}

FILE *popen(const char *command, const char *mode)
{
	return may_call_shell() ? real_popen(command, mode) : NULL;
}

/* A module with RTLD_DEEPBIND would find libc's connect() before ours. A jump: dlopen() looks at who called it. */
void *dlopen(const char *file, int mode)
{
#ifdef RTLD_DEEPBIND
	mode = aside() ? mode : mode & ~RTLD_DEEPBIND;
#endif
	return real_dlopen(file, mode);
}

/* syscall(2) of what is hooked above; all else as it is */
long syscall(long number, ...)
{
	static const char io_uring[] = "io_uring";
	struct request refused = {.op = OP_REFUSED, .fd = -1, .part = {{(void *)io_uring, sizeof io_uring - 1}}};
	va_list list;
	long a[6];

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	switch (aside() ? -1 : number) {
	case SYS_socket:
		return socket((int)a[0], (int)a[1], (int)a[2]);
	case SYS_connect:
		return failed(reach((int)a[0], (struct sockaddr *)a[1], (socklen_t)a[2]));
	case SYS_getpeername:
		return getpeername((int)a[0], (struct sockaddr *)a[1], (socklen_t *)a[2]);
	case SYS_getsockopt:
		return getsockopt((int)a[0], (int)a[1], (int)a[2], (void *)a[3], (socklen_t *)a[4]);
	case SYS_sendto:
		return sendto((int)a[0], (void *)a[1], (size_t)a[2], (int)a[3], (struct sockaddr *)a[4], (socklen_t)a[5]);
	case SYS_sendmsg:
		return sendmsg((int)a[0], (struct msghdr *)a[1], (int)a[2]);
	case SYS_sendmmsg:
		return sendmmsg((int)a[0], (struct mmsghdr *)a[1], (unsigned)a[2], (MESSAGE_FLAGS)a[3]);
	case SYS_recvfrom:
		return recvfrom((int)a[0], (void *)a[1], (size_t)a[2], (int)a[3], (struct sockaddr *)a[4], (socklen_t *)a[5]);
	case SYS_recvmsg:
		return recvmsg((int)a[0], (struct msghdr *)a[1], (int)a[2]);
	case SYS_recvmmsg:
		return recvmmsg((int)a[0], (struct mmsghdr *)a[1], (unsigned)a[2], (MESSAGE_FLAGS)a[3], (struct timespec *)a[4]);
	case SYS_execve:
		return execve((char *)a[0], (char **)a[1], (char **)a[2]);
	case SYS_execveat:
		return execveat((int)a[0], (char *)a[1], (char **)a[2], (char **)a[3], (int)a[4]);
	case SYS_io_uring_setup:
		return failed(ask(&refused) < 0 ? -ENOSYS : -ENOSYS);
	default:
		return real_syscall ? real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5])
				    : failed(raw(number, a[0], a[1], a[2], a[3], a[4], a[5]));
	}
}
