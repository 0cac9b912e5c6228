/*
 * lookups HOST: what libc's calls about names say of it, for a table of arguments, one line each. Every list is freed,
 * so that an allocator that checks finds what isn't as libc made it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void show(const struct sockaddr *address, socklen_t size)
{
	char text[INET6_ADDRSTRLEN] = "?";
	const struct sockaddr_in *four = (const void *)address;
	const struct sockaddr_in6 *six = (const void *)address;

	inet_ntop(address->sa_family, address->sa_family == AF_INET ? (void *)&four->sin_addr : (void *)&six->sin6_addr, text,
		  sizeof text);
	printf(" %s %u size=%u", text, ntohs(four->sin_port), size);
	if (address->sa_family == AF_INET6)
		printf(" scope=%u", six->sin6_scope_id);
}

static void ask(const char *host, const char *service, const struct addrinfo *hints)
{
	struct addrinfo *list = NULL;
	int error;

	errno = 77;
	error = getaddrinfo(host, service, hints, &list);
	printf("getaddrinfo %s %s ", host ? host : "NULL", service ? service : "NULL");
	if (hints)
		printf("flags=%#x family=%d type=%d protocol=%d:", hints->ai_flags, hints->ai_family, hints->ai_socktype,
		       hints->ai_protocol);
	printf(" %d", error);
	for (struct addrinfo *each = error ? NULL : list; each; each = each->ai_next) {
		printf(" | flags=%#x %d %d %d", each->ai_flags, each->ai_family, each->ai_socktype, each->ai_protocol);
		show(each->ai_addr, each->ai_addrlen);
		printf(" %s", each->ai_canonname ? each->ai_canonname : "-");
	}
	printf("\n");
	if (!error)
		freeaddrinfo(list);
}

static void entry(const char *call, int error, const struct hostent *host)
{
	char text[INET6_ADDRSTRLEN];

	printf("%s %d", call, error);
	if (host) {
		printf(" %s %d %d", host->h_name, host->h_addrtype, host->h_length);
		for (char **each = host->h_addr_list; *each; each++)
			printf(" %s", inet_ntop(host->h_addrtype, *each, text, sizeof text));
	}
	printf("\n");
}

static void by_host(const char *name)
{
	struct hostent room, *host = NULL;
	char buffer[1024];
	int error = 0, status;

	host = gethostbyname(name);
	entry("gethostbyname", host ? 0 : h_errno, host);
	host = gethostbyname2(name, AF_INET6);
	entry("gethostbyname2", host ? 0 : h_errno, host);
	status = gethostbyname_r(name, &room, buffer, 4, &host, &error);
	printf("gethostbyname_r small %d %d\n", status == ERANGE, host != NULL);
	status = gethostbyname_r(name, &room, buffer, sizeof buffer, &host, &error);
	entry("gethostbyname_r", status, host);
	status = gethostbyname2_r(name, AF_INET, &room, buffer, sizeof buffer, &host, &error);
	entry("gethostbyname2_r", status, host);
}

static void by_address(void)
{
	struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_port = htons(80), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	static const int flags[] = {0, NI_NUMERICHOST, NI_NUMERICSERV, NI_NAMEREQD, NI_DGRAM, NI_NUMERICHOST | NI_NUMERICSERV};
	struct hostent room, *found = NULL;
	char host[NI_MAXHOST], service[NI_MAXSERV], buffer[1024];
	int error = 0, status;

	for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
		strcpy(host, "-"), strcpy(service, "-");
		status = getnameinfo((void *)&loopback, sizeof loopback, host, sizeof host, service, sizeof service, flags[i]);
		printf("getnameinfo %#x %d %s %s\n", flags[i], status, host, service);
	}
	status = getnameinfo((void *)&loopback, sizeof loopback, host, 3, NULL, 0, 0);
	printf("getnameinfo small %d\n", status);
	status = getnameinfo((void *)&loopback, sizeof loopback, NULL, 0, service, sizeof service, NI_NUMERICSERV);
	printf("getnameinfo service %d %s\n", status, service);
	status = getnameinfo((void *)&loopback, 4, host, sizeof host, NULL, 0, 0);
	printf("getnameinfo short %d\n", status != 0);
	found = gethostbyaddr(&loopback.sin_addr, sizeof loopback.sin_addr, AF_INET);
	entry("gethostbyaddr", found ? 0 : h_errno, found);
	status = gethostbyaddr_r(&loopback.sin_addr, sizeof loopback.sin_addr, AF_INET, &room, buffer, sizeof buffer, &found,
				 &error);
	entry("gethostbyaddr_r", status, found);
	status = gethostbyaddr_r(&loopback.sin_addr, sizeof loopback.sin_addr, AF_INET, &room, buffer, 4, &found, &error);
	printf("gethostbyaddr_r small %d\n", status == ERANGE);
}

int main(int argc, char **argv)
{
	static const int flags[] = {0,
				    AI_CANONNAME,
				    AI_NUMERICHOST,
				    AI_PASSIVE,
				    AI_ADDRCONFIG,
				    AI_V4MAPPED,
				    AI_V4MAPPED | AI_ALL,
				    AI_V4MAPPED | AI_ADDRCONFIG | AI_CANONNAME,
				    0x40000};
	static const int families[] = {AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX};
	static const int types[] = {0, SOCK_STREAM, SOCK_DGRAM, 4242};
	const char *hosts[] = {argc > 1 ? argv[1] : "localhost", "127.0.0.1", "127.1", "::1", "fe80::1%lo", NULL, ""};
	const char *services[] = {NULL, "80", "http", "nonesuch", "99999"};

	for (size_t h = 0; h < sizeof hosts / sizeof *hosts; h++)
		for (size_t s = 0; s < sizeof services / sizeof *services; s++) {
			ask(hosts[h], services[s], NULL);
			for (size_t f = 0; f < sizeof flags / sizeof *flags; f++)
				for (size_t a = 0; a < sizeof families / sizeof *families; a++)
					for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
						struct addrinfo hints = {.ai_flags = flags[f],
									 .ai_family = families[a],
									 .ai_socktype = types[t]};

						ask(hosts[h], services[s], &hints);
					}
		}
	by_host(hosts[0]);
	by_host("127.0.0.1");
	by_address();
	return 0;
}
