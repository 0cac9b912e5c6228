/* byname HOST PORT: getaddrinfo, connect, GET. Built static with musl and dynamic with glibc. */
#include <netdb.h>
#include <sys/socket.h>

#include "get.h"

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;

	if (argc != 3)
		return 2;
	int error = getaddrinfo(argv[1], argv[2], &hints, &found);
	if (error) {
		fprintf(stderr, "getaddrinfo: %s\n", gai_strerror(error));
		return 1;
	}
	for (struct addrinfo *one = found; one; one = one->ai_next) {
		int fd = socket(one->ai_family, one->ai_socktype, one->ai_protocol);
		if (fd >= 0 && connect(fd, one->ai_addr, one->ai_addrlen) == 0)
			return get(fd, argv[1]);
		perror("connect");
		if (fd >= 0)
			close(fd);
	}
	return 1;
}
