/*
 * gaps WHAT IPV4 PORT: what an engine may be unable to see, done by a program that is linked dynamically; prints
 * `name=errno`. raw: socket and connect without libc; uring: io_uring_setup without libc; traced: ptrace(2)'s
 * PTRACE_TRACEME, which a debugger's child calls.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>

#include "call.h"

static const long IO_URING_SETUP = 425; /* the same everywhere */

int main(int argc, char **argv)
{
	static char parameters[120]; /* struct io_uring_params */
	struct sockaddr_in destination = {.sin_family = AF_INET};
	long fd;

	if (argc != 4)
		return 2;
	inet_pton(AF_INET, argv[2], &destination.sin_addr);
	destination.sin_port = htons((in_port_t)atoi(argv[3]));
	if (!strcmp(argv[1], "raw")) {
		fd = call(SOCKET, AF_INET, SOCK_STREAM, 0);
		if (fd >= 0)
			fd = call(CONNECT, (word)fd, (word)&destination, sizeof destination);
		printf("raw=%ld\n", -fd);
	} else if (!strcmp(argv[1], "uring")) {
		fd = call(IO_URING_SETUP, 8, (word)parameters, 0);
		printf("uring=%ld\n", fd < 0 ? -fd : 0);
	} else {
		printf("traced=%d\n", ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 ? errno : 0);
	}
	return 0;
}
