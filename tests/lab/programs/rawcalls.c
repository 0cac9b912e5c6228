/*
 * rawcalls IPV4 PORT: socket, connect, write, read and exit as system calls of its own, with no libc to interpose on
 * (-static -nostdlib). Prints the answer as it comes. x86_64 and aarch64.
 */
#include "call.h"

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
#else
__asm__(".globl _start\n_start:\n\tmov x0, sp\n\tbl start\n");
#endif

static unsigned number(const char **text)
{
	unsigned value = 0;

	while (**text >= '0' && **text <= '9')
		value = value * 10 + (unsigned)(*(*text)++ - '0');
	return value;
}

__attribute__((used, noreturn)) void start(word *stack)
{
	static const char request[] = "GET /peer HTTP/1.0\r\n\r\n";
	static char answer[4096];
	const char **argv = (const char **)(stack + 1);
	const char *host = argv[1], *port = argv[2];
	unsigned char address[16] = {2, 0}; /* sin_family, little-endian */
	unsigned value = number(&port);
	long fd, count, status = 0;

	address[2] = (unsigned char)(value >> 8);
	address[3] = (unsigned char)value;
	for (int i = 4; i < 8; i++, host++)
		address[i] = (unsigned char)number(&host);
	fd = call(SOCKET, 2, 1, 0);
	status = fd < 0 ? fd : call(CONNECT, (word)fd, (word)address, sizeof address);
	if (status >= 0) {
		call(WRITE, (word)fd, (word)request, sizeof request - 1);
		while ((count = call(READ, (word)fd, (word)answer, sizeof answer)) > 0)
			call(WRITE, 1, (word)answer, (word)count);
		status = 0;
	}
	for (;;)
		call(EXIT, (word)(status < 0 ? -status : status), 0, 0);
}
