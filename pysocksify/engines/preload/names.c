/*
 * Names and addresses. A name's addresses come from the supervisor; what libc makes of them (socket types, services,
 * scopes, flags) libc itself makes, which is given the addresses as numbers. So every list is of libc's own memory.
 */
#include "shim.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>

#ifndef NETDB_INTERNAL /* musl */
#define NETDB_INTERNAL -1
#endif

struct entry {
	uint32_t family;
	uint8_t address[16];
};

struct names { /* the reply to a NAME */
	uint32_t count;
	struct entry entry[102]; /* the canonical name follows the last one that is there */
};

static int ask_names(const char *name, int family, struct names *names)
{
	struct request request = {.op = OP_NAME, .fd = -1, .part = {{&family, sizeof family}, {(void *)name, strlen(name)}},
				  .room = names, .size = sizeof *names - 1};
	int verdict = ask(&request);

	if (verdict >= 0 && (request.got < sizeof names->count ||
			     (request.got - sizeof names->count) / sizeof names->entry[0] < names->count))
		return -EIO;
	((char *)names)[request.got] = '\0'; /* ends the canonical name */
	return verdict;
}

/* The name of an address; 0, or an errno, negative. */
static int ask_pointer(const void *sockaddr, size_t size, char name[NI_MAXHOST])
{
	struct request request = {.op = OP_POINTER, .fd = -1, .part = {{(void *)sockaddr, size}}, .room = name,
				  .size = NI_MAXHOST - 1};
	int verdict = ask(&request);

	name[request.got] = '\0';
	return verdict;
}

/* A lookup's failure in the numbers of either interface. */
#define CODE(verdict, no_name, no_data, again, other)                                                                  \
	((verdict) == -ENOENT ? (no_name) : (verdict) == -ENODATA ? (no_data) : (verdict) == -EAGAIN ? (again) : (other))

/* The canonical name, such that the freeaddrinfo() that libc has, or ours below, frees it. */
#ifdef __GLIBC__
#define MARK 0
#define NO_HINTS (AI_V4MAPPED | AI_ADDRCONFIG)
#define mark ""
#else
#define MARK 8
#define NO_HINTS 0
static const char mark[MARK] = "\377shim\001\002";

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

	return copy ? strcpy((char *)memcpy(copy, mark, MARK) + MARK, name) : NULL;
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

int getaddrinfo(const char *restrict host, const char *restrict service, const struct addrinfo *restrict given,
		struct addrinfo **restrict result)
{
	struct addrinfo hints = {.ai_flags = NO_HINTS}, *list = NULL;
	struct names names;
	int before = errno, error, mapped;

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
		error = error < 0 ? CODE(error, EAI_NONAME, EAI_NODATA, EAI_AGAIN, EAI_FAIL)
				  : numeric_list(&names, service, &hints, &list);
		/* glibc names the first entry when it's asked to, musl all, always */
		if (MARK || hints.ai_flags & AI_CANONNAME)
			for (struct addrinfo *each = list; each; each = MARK ? each->ai_next : NULL)
				each->ai_canonname = canonical((char *)&names.entry[names.count]);
		errno = before;
	}
	if (!error)
		*result = list;
	return error;
}

#ifdef __GLIBC__
#pragma weak pthread_create

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
static int fill(struct hostent *host, char *buffer, size_t size, struct hostent **result, int *error, const char *name,
		int family, const struct names *names)
{
	size_t skip = -(uintptr_t)buffer % sizeof(char *), each = family == AF_INET ? 4 : 16, count = names->count;
	char **pointers = (char **)(void *)(buffer + skip), *bytes = (char *)(pointers + count + 2);

	if (size < skip + (count + 2) * sizeof(char *) + count * each + strlen(name) + 1) {
		*error = NETDB_INTERNAL;
		return errno = ERANGE;
	}
	*host = (struct hostent){.h_aliases = pointers, .h_addrtype = family, .h_length = (int)each, .h_addr_list = pointers + 1};
	pointers[0] = pointers[count + 1] = NULL;
	for (size_t i = 0; i < count; i++, bytes += each)
		host->h_addr_list[i] = memcpy(bytes, names->entry[i].address, each);
	host->h_name = strcpy(bytes, name);
	*result = host;
	return 0;
}

int gethostbyname2_r(const char *restrict name, int family, struct hostent *restrict host, char *restrict buffer,
		     size_t size, struct hostent **restrict result, int *restrict error)
{
	struct names names = {.count = 1};
	int verdict = ANSWER, before = errno, literal;
	const char *own = name;

	if (aside())
		return real_gethostbyname2_r(name, family, host, buffer, size, result, error);
	*result = NULL;
	literal = inet_pton(family, name, names.entry[0].address);
	if (!literal && family == AF_INET)
		literal = inet_aton(name, (struct in_addr *)(void *)names.entry[0].address);
	if (literal < 0) { /* no family of addresses */
		verdict = -EAFNOSUPPORT;
	} else if (!literal) {
		verdict = ask_names(name, family, &names);
		own = (char *)&names.entry[names.count];
	}
	errno = before;
	if (verdict >= 0)
		return fill(host, buffer, size, result, error, own, family, &names);
	*error = CODE(verdict, HOST_NOT_FOUND, NO_DATA, TRY_AGAIN, NO_RECOVERY);
	return *error == TRY_AGAIN ? EAGAIN : *error == NO_RECOVERY ? EBADMSG : 0;
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

int gethostbyaddr_r(const void *restrict address, socklen_t length, int family, struct hostent *restrict host,
		    char *restrict buffer, size_t size, struct hostent **restrict result, int *restrict error)
{
	struct sockaddr_in four = {.sin_family = AF_INET};
	struct sockaddr_in6 six = {.sin6_family = AF_INET6};
	struct names names = {.count = 1};
	char name[NI_MAXHOST];
	int before = errno, verdict;

	if (aside())
		return real_gethostbyaddr_r(address, length, family, host, buffer, size, result, error);
	*result = NULL;
	*error = NO_RECOVERY;
	if (family == AF_INET ? length != sizeof four.sin_addr : family != AF_INET6 || length != sizeof six.sin6_addr)
		return 0;
	memcpy(names.entry[0].address, address, length);
	memcpy(family == AF_INET ? (void *)&four.sin_addr : (void *)&six.sin6_addr, address, length);
	verdict = family == AF_INET ? ask_pointer(&four, sizeof four, name) : ask_pointer(&six, sizeof six, name);
	errno = before;
	if (verdict >= 0)
		return fill(host, buffer, size, result, error, name, family, &names);
	*error = CODE(verdict, HOST_NOT_FOUND, NO_DATA, TRY_AGAIN, NO_RECOVERY);
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

	if (!aside() && host && host_size && !(flags & NI_NUMERICHOST) && size >= sizeof *address &&
	    (address->sa_family == AF_INET || address->sa_family == AF_INET6)) {
		verdict = ask_pointer(address, size, name);
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
