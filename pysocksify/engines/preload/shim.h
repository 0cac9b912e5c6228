/*
 * The preload engine's shim: calls of libc that open ways out are handed to the supervisor (engines/handover/wire.py).
 *
 * Theory of operation. Each hooked call that concerns us becomes one request on a connection of its own to the
 * supervisor's abstract Unix socket: the program's own descriptor goes along (SCM_RIGHTS), the reply says the errno, or
 * that the kernel may perform the call. Nothing is kept: no descriptor, no thread, no memory, no state but what the
 * environment said. So a fork, an exec, a chroot, another user and close_range(2) change nothing.
 *
 * Calls that may be made in a signal's handler, after vfork(2) or before constructors use system calls and the stack
 * only. errno is touched by failures alone. Where the supervisor can't be reached, or its place isn't known, calls fail.
 *
 * handover.c has the request and its reply; the hooks are in sockets.c, names.c, resolver.c, programs.c and syscall.c.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <resolv.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __GLIBC__ /* whose prototypes have transparent unions */
#define SOCKADDR __SOCKADDR_ARG
#define CONST_SOCKADDR __CONST_SOCKADDR_ARG
#define PLAIN(address) ((address).__sockaddr__)
#define MESSAGE_FLAGS int
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
#define OF_GLIBC(X) X(res_nquery) X(res_nsearch) X(res_nsend)
#else
#define SOCKADDR struct sockaddr *restrict
#define CONST_SOCKADDR const struct sockaddr *
#define PLAIN(address) (address)
#define MESSAGE_FLAGS unsigned
#define OF_GLIBC(X)
#endif

/* The functions behind the hooks. syscall() is the first to be found: what dlsym(3) calls may call it. */
#define REALS(X)                                                                                                       \
	X(syscall) X(connect) X(getpeername) X(getsockopt) X(socket) X(sendto) X(sendmsg) X(sendmmsg) X(recvfrom)      \
	X(recvmsg) X(recvmmsg) X(getaddrinfo) X(freeaddrinfo) X(getnameinfo) X(gethostbyname2_r) X(gethostbyaddr_r)    \
	X(execve) X(execvpe) X(fexecve) X(posix_spawn) X(posix_spawnp) X(system) X(popen) X(dlopen) X(res_query)       \
	X(res_search) X(res_send) OF_GLIBC(X)

#define VARIABLE "PYSOCKSIFY_HANDOVER"
#define ALIAS(other, name) __asm__(".globl " #other "\n.set " #other ", " #name "\n");

enum {
	OP_CONNECT = 1, OP_INTERRUPTED, OP_PEER, OP_ERROR, OP_SOCKET, OP_SEND,
	OP_SOURCE, OP_NAME, OP_POINTER, OP_DNS, OP_EXEC, OP_PATH, OP_REFUSED
};
enum { ANSWER, PROCEED, REDIRECT };

struct request {
	uint32_t op;
	int fd; /* goes along, or -1 */
	struct iovec part[2];
	void *room; /* for the reply's payload */
	size_t size, got;
	int given; /* the descriptor that came with the reply, or -1 */
};

#pragma GCC visibility push(hidden)
#define DECLARE(name) extern __typeof__(name) *real_##name;
REALS(DECLARE)

extern char variable[256];	    /* the environment's entry that says where the supervisor is */
extern const char *own_object; /* the shim's file in this program */

/* Whether another engine has taken over: the hooks change nothing then. */
int aside(void);

/* One request and its reply: the verdict, or an errno, negative. */
int ask(struct request *request);

/* Have the supervisor say to the person what is refused here. */
void tell_refused(const char *what);

/* A system call without errno, cancellation point or hook; negative: an errno. */
long raw(long number, long a, long b, long c, long d, long e, long f);
#define RAW6(number, a, b, c, d, e, f, ...) raw(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define RAW(...) RAW6(__VA_ARGS__, 0, 0, 0, 0, 0, 0)

/* The same for one that makes a descriptor, though the program has all that it allows itself. */
long one_more(long number, long a, long b, long c, long d);

/* A system call's result as libc returns it. */
long failed(long result);

/* A call as it stands; without libc's function, as while dlsym(3) looks for it, the system call. */
#define KERNEL(name, ...) (real_##name ? real_##name(__VA_ARGS__) : failed(RAW(SYS_##name, __VA_ARGS__)))
#pragma GCC visibility pop

#pragma GCC visibility push(default) /* each function that isn't static and isn't declared above is a hook */
int execveat(int fd, const char *path, char *const argv[], char *const environment[], int flags); /* not in all of musl */
