/*
 * serial IPV4 PORT COUNT: so many blocking connects one after the other, each closed again; prints the seconds.
 * A first one isn't counted: it waits for what a wrapper loads, which belongs to the start.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int connect_once(const struct sockaddr_in *destination)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)destination, sizeof *destination)) {
		perror("connect");
		return -1;
	}
	return close(fd);
}

int main(int argc, char **argv)
{
	struct sockaddr_in destination = {.sin_family = AF_INET};

	if (argc != 4 || inet_pton(AF_INET, argv[1], &destination.sin_addr) != 1)
		return 2;
	destination.sin_port = htons((uint16_t)atoi(argv[2]));
	if (connect_once(&destination))
		return 1;
	double start = now();
	for (int count = atoi(argv[3]); count > 0; count--) {
		if (connect_once(&destination))
			return 1;
	}
	printf("%.6f\n", now() - start);
	return 0;
}
