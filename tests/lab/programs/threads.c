/* threads HOST PORT COUNT: so many threads resolve the name, connect and GET, all at once; prints a body for each. */
#include <netdb.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "get.h"

static const char *host, *port;
static pthread_barrier_t barrier;

static void *one(void *unused)
{
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
	long failed = 1;

	(void)unused;
	pthread_barrier_wait(&barrier);
	int error = getaddrinfo(host, port, &hints, &found);
	if (error) {
		fprintf(stderr, "getaddrinfo: %s\n", gai_strerror(error));
		return (void *)failed;
	}
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen))
		perror("connect");
	else
		failed = get(fd, host);
	if (fd >= 0)
		close(fd);
	freeaddrinfo(found);
	return (void *)failed;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	host = argv[1];
	port = argv[2];
	int count = atoi(argv[3]), failures = 0;
	pthread_t *threads = calloc((size_t)count, sizeof *threads);

	if (!threads || pthread_barrier_init(&barrier, NULL, (unsigned)count))
		return 2;
	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, one, NULL))
			return 2;
	for (int i = 0; i < count; i++) {
		void *failed;
		pthread_join(threads[i], &failed);
		failures += failed != NULL;
	}
	return failures != 0;
}
