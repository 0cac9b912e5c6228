/* The request to the supervisor and its reply; who the supervisor is, as the environment says. */
#include "shim.h"

#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/un.h>

#ifdef __GLIBC__
#pragma weak __pthread_register_cancel /* before glibc 2.34 they're there only where there are threads */
#pragma weak __pthread_unregister_cancel
#pragma weak __pthread_unwind_next
#define CANCELLABLE (__pthread_register_cancel != NULL)
#pragma weak __libc_stack_end
extern void *__libc_stack_end; /* of the dynamic linker: where the kernel put the number of arguments */
#else
#define CANCELLABLE 1
#endif

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

char variable[256];
const char *own_object;
static enum { UNKNOWN, ON, ASIDE, LOST } standing;
static struct sockaddr_un supervisor = {.sun_family = AF_UNIX};
static socklen_t supervisor_size;
static uint8_t token[16];

#define DEFINE(name) __typeof__(name) *real_##name;
REALS(DEFINE)

long raw(long number, long a, long b, long c, long d, long e, long f)
{
	int before = errno;
	long result = real_syscall ? real_syscall(number, a, b, c, d, e, f) : (errno = ENOSYS, -1);

	result = result == -1 ? -errno : result;
	errno = before;
	return result;
}

long one_more(long number, long a, long b, long c, long d)
{
	struct rlimit limit, raised;
	long fd = RAW(number, a, b, c, d);

	if (fd == -EMFILE && !RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &limit)) {
		raised = (struct rlimit){limit.rlim_cur + 64 < limit.rlim_max ? limit.rlim_cur + 64 : limit.rlim_max,
					 limit.rlim_max};
		RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, &raised, NULL);
		fd = RAW(number, a, b, c, d);
		RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, &limit, NULL);
	}
	return fd;
}

long failed(long result)
{
	if (result >= 0)
		return result;
	errno = (int)-result;
	return -1;
}

static void read_hexadecimal(const char *text, void *bytes, size_t count)
{
	for (size_t i = 0; i < 2 * count; i++) {
		int digit = text[i] <= '9' ? text[i] - '0' : text[i] - 'a' + 10;

		((uint8_t *)bytes)[i / 2] = (uint8_t)(((uint8_t *)bytes)[i / 2] << 4 | digit);
	}
}

/* Once, before main() at the latest: afterwards nothing is looked up that takes a lock or memory. */
__attribute__((constructor)) static void prepare(void)
{
	static int preparing;
	int before = errno, now = LOST;
	Dl_info info;

	if (standing || preparing)
		return;
	preparing = 1;
#define FIND(name)                                                                                                     \
	if (!(real_##name = (__typeof__(real_##name))dlsym(RTLD_NEXT, #name)))                                         \
		real_##name = (__typeof__(real_##name))dlsym(RTLD_NEXT, "__" #name);
	REALS(FIND)
	own_object = dladdr(token, &info) ? info.dli_fname : "";
#ifdef __GLIBC__
	if (!environ && &__libc_stack_end) /* before the first constructor */
		environ = (char **)__libc_stack_end + *(long *)__libc_stack_end + 2;
#endif
	const char *value = getenv(VARIABLE), *colon = value ? strchr(value, ':') : NULL;
	size_t length = value ? strlen(value) : 0, name = colon ? (size_t)(colon - value) / 2 : 0;
	if (value && !length) {
		now = ASIDE;
	} else if (colon && length == 2 * (name + sizeof token) + 1 && length < sizeof variable - sizeof VARIABLE) {
		read_hexadecimal(value, supervisor.sun_path + 1, name);
		read_hexadecimal(colon + 1, token, sizeof token);
		supervisor_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + name);
		strcpy(stpcpy(variable, VARIABLE "="), value);
		now = ON;
	}
	__atomic_store_n(&standing, now, __ATOMIC_RELEASE);
	preparing = 0;
	errno = before;
}

int aside(void)
{
	if (!__atomic_load_n(&standing, __ATOMIC_ACQUIRE))
		prepare();
	return standing == ASIDE;
}

static int reach_supervisor(void)
{
	long line = standing == ON ? one_more(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0) : -ECONNREFUSED;
	long error = line < 0 ? line : -EINTR;

	while (error == -EINTR)
		error = RAW(SYS_connect, line, &supervisor, supervisor_size);
	if (line < 0 || !error)
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

int ask(struct request *request)
{
	struct head head = {0x70736b31, request->op, (int32_t)RAW(SYS_gettid),
			    (uint32_t)(request->part[0].iov_len + request->part[1].iov_len), {0}};
	struct reply reply;
	struct iovec out[3] = {{&head, sizeof head}, request->part[0], request->part[1]};
	struct iovec in[2] = {{&reply, sizeof reply}, {request->room, request->size}};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} rights = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct msghdr question = {.msg_iov = out, .msg_iovlen = 3, .msg_control = request->fd < 0 ? NULL : &rights,
				  .msg_controllen = request->fd < 0 ? 0 : sizeof rights};
	struct msghdr answer = {.msg_iov = in, .msg_iovlen = 2, .msg_control = &rights, .msg_controllen = sizeof rights};
	int line = reach_supervisor(), waits = request->op == OP_CONNECT;
	long count;

	if (line < 0)
		return line;
	memcpy(head.token, token, sizeof token);
	memcpy(CMSG_DATA(&rights.header), &request->fd, sizeof(int));
	count = RAW(SYS_sendmsg, line, &question, MSG_NOSIGNAL);
	if (count < 0) { /* EBADF and EFAULT as the call itself has them */
		RAW(SYS_close, line);
		return count == -EPIPE || count == -ECONNRESET ? -ECONNREFUSED : (int)count;
	}
	do {
		if (waits && CANCELLABLE)
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

void tell_refused(const char *what)
{
	ask(&(struct request){.op = OP_REFUSED, .fd = -1, .part = {{(void *)what, strlen(what)}}});
}
