/* A module for dlopen(3) that connects; ALONE, a program that says that it ran. */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

int module_connect(struct sockaddr_in *address)
{
	return connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)address, sizeof *address) ? errno : 0;
}

#ifdef ALONE
int main(void)
{
	return puts("ran") < 0;
}
#endif
