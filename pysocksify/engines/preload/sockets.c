/* Sockets: made, connected, asked about; and datagrams, which may be sent elsewhere than the program says. */
#include "shim.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/un.h>

static int number_of(int fd, int option)
{
	int value = 0;
	socklen_t size = sizeof value;
	long error = RAW(SYS_getsockopt, fd, SOL_SOCKET, option, &value, &size);

	return error < 0 ? (int)error : value;
}

static int domain_of(int fd)
{
	return aside() ? AF_UNSPEC : number_of(fd, SO_DOMAIN);
}

static int is_inet(int fd)
{
	int domain = domain_of(fd);

	return domain == AF_INET || domain == AF_INET6;
}

int connect(int fd, CONST_SOCKADDR address, socklen_t size)
{
	static const socklen_t family = sizeof(sa_family_t);
	struct request request = {.op = OP_CONNECT, .fd = fd, .part = {{(void *)PLAIN(address), size}}};
	int domain = domain_of(fd), verdict = PROCEED;

	if (domain == AF_INET || domain == AF_INET6) {
		verdict = size > sizeof(struct sockaddr_storage) ? -EINVAL : ask(&request);
	} else if (domain == AF_UNIX && size > family && size <= sizeof(struct sockaddr_un)) {
		request.op = OP_PATH, request.fd = -1;
		request.part[0] = (struct iovec){(char *)PLAIN(address) + family, size - family};
		verdict = ask(&request);
	}
	return (int)(verdict == PROCEED ? KERNEL(connect, fd, PLAIN(address), size) : failed(verdict));
}

int socket(int family, int type, int protocol)
{
	int32_t arguments[3] = {family, type, protocol};
	struct request request = {.op = OP_SOCKET, .fd = -1, .part = {{arguments, sizeof arguments}}};
	int inet = family == AF_INET || family == AF_INET6, base = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC), verdict;

	if (aside() || family == AF_UNIX || family == AF_NETLINK || family == AF_ALG ||
	    (inet && base == SOCK_STREAM && (!protocol || protocol == IPPROTO_TCP)))
		return (int)KERNEL(socket, family, type, protocol);
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

	if (!is_inet(fd) || ask(&request) != ANSWER || (int)*size < 0)
		return (int)KERNEL(getpeername, fd, PLAIN(address), size);
	give(PLAIN(address), size, &peer, request.got);
	return 0;
}

int getsockopt(int fd, int level, int option, void *restrict value, socklen_t *restrict size)
{
	int32_t error;
	struct request request = {.op = OP_ERROR, .fd = fd, .room = &error, .size = sizeof error};

	if (level != SOL_SOCKET || option != SO_ERROR || !is_inet(fd) || ask(&request) != ANSWER || (int)*size < 0)
		return (int)KERNEL(getsockopt, fd, level, option, value, size);
	give(value, size, &error, *size < sizeof error ? *size : sizeof error);
	return 0;
}

/* Sends that name a destination: TCP's connect, UDP's may be sent elsewhere. 0, or an errno, negative. */
static long on_its_way(int fd, struct msghdr *message, int *flags, struct sockaddr_storage *elsewhere)
{
	struct request request = {.op = OP_SEND, .fd = fd, .room = elsewhere, .size = sizeof *elsewhere};
	int named = message->msg_name && message->msg_namelen, verdict;

	if ((!named && !message->msg_controllen && !(*flags & MSG_FASTOPEN)) || !is_inet(fd))
		return 0;
	if (named)
		request.part[0] = (struct iovec){message->msg_name, message->msg_namelen};
	if (number_of(fd, SO_TYPE) == SOCK_STREAM) {
		if (!(*flags & MSG_FASTOPEN))
			return 0;
		*flags &= ~MSG_FASTOPEN;
		message->msg_name = NULL, message->msg_namelen = 0;
		if (!named)
			return -EDESTADDRREQ;
		return connect(fd, (struct sockaddr *)request.part[0].iov_base, (socklen_t)request.part[0].iov_len) ? -errno : 0;
	}
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

	return error ? failed(error)
		     : KERNEL(sendto, fd, data, size, flags, (struct sockaddr *)message.msg_name, message.msg_namelen);
}

ssize_t sendmsg(int fd, const struct msghdr *given, int flags)
{
	struct sockaddr_storage elsewhere;
	struct msghdr message = *given;
	long error = on_its_way(fd, &message, &flags, &elsewhere);

	return error ? failed(error) : KERNEL(sendmsg, fd, &message, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, MESSAGE_FLAGS flags)
{
	unsigned sent = 0;
	int inet = is_inet(fd), left = (int)flags;

	if (!inet || number_of(fd, SO_TYPE) == SOCK_STREAM) {
		struct msghdr first;
		long error = inet && count ? (first = messages->msg_hdr, on_its_way(fd, &first, &left, NULL)) : 0;

		count = left == (int)flags ? count : 1;
		return (int)(error ? failed(error) : KERNEL(sendmmsg, fd, messages, count, (MESSAGE_FLAGS)left));
	}
	for (; sent < count && sent < 1024; sent++) {
		ssize_t size = sendmsg(fd, &messages[sent].msg_hdr, (int)flags);

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
	struct request request = {.op = OP_SOURCE, .fd = fd, .room = &shown, .size = sizeof shown};
	const struct sockaddr_in *four = name;
	const struct sockaddr_in6 *six = name;
	const uint8_t *octets = NULL;

	if (!room || *size < sizeof *four || *size > room)
		return;
	if (four->sin_family == AF_INET)
		octets = (const uint8_t *)&four->sin_addr;
	else if (four->sin_family == AF_INET6 && *size >= sizeof *six && IN6_IS_ADDR_V4MAPPED(&six->sin6_addr))
		octets = &six->sin6_addr.s6_addr[12];
	else if (four->sin_family != AF_INET6 || *size < sizeof *six || !IN6_IS_ADDR_LOOPBACK(&six->sin6_addr))
		return;
	request.part[0] = (struct iovec){name, *size};
	if ((!octets || *octets == 127) && ask(&request) == ANSWER) {
		*size = room;
		give(name, size, &shown, request.got);
	}
}

ssize_t recvfrom(int fd, void *restrict data, size_t size, int flags, SOCKADDR from, socklen_t *restrict from_size)
{
	socklen_t room = !aside() && PLAIN(from) && from_size ? *from_size : 0;
	ssize_t count = KERNEL(recvfrom, fd, data, size, flags, PLAIN(from), from_size);

	if (count >= 0)
		show_source(fd, PLAIN(from), room, from_size);
	return count;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	socklen_t room = aside() || !message->msg_name ? 0 : message->msg_namelen;
	ssize_t count = KERNEL(recvmsg, fd, message, flags);

	if (count >= 0)
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
	taken = (int)KERNEL(recvmmsg, fd, messages, count, flags, limit);
	for (int i = 0; i < taken; i++)
		show_source(fd, messages[i].msg_hdr.msg_name, room[i], &messages[i].msg_hdr.msg_namelen);
	return taken;
}

#ifdef __GLIBC__
ALIAS(__connect, connect)

ssize_t __recvfrom_chk(int fd, void *restrict data, size_t size, size_t room, int flags, SOCKADDR from,
		       socklen_t *restrict from_size)
{
	if (size > room)
		__builtin_trap();
	return recvfrom(fd, data, size, flags, from, from_size);
}
#endif
