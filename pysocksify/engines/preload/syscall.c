/* syscall(2): by number what is hooked by name; all else as it is. */
#include "shim.h"

#include <stdarg.h>

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif

long syscall(long number, ...)
{
	union {
		long number;
		void *at;
	} a[6];
	va_list list;
#define AT(i) a[i].at
#define INT(i) (int)a[i].number
#define SIZE(i) (size_t)a[i].number

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i].number = va_arg(list, long);
	va_end(list);
	switch (aside() ? -1 : number) {
	case SYS_socket: return socket(INT(0), INT(1), INT(2));
	case SYS_connect: return connect(INT(0), AT(1), (socklen_t)SIZE(2));
	case SYS_getpeername: return getpeername(INT(0), AT(1), AT(2));
	case SYS_getsockopt: return getsockopt(INT(0), INT(1), INT(2), AT(3), AT(4));
	case SYS_sendto: return sendto(INT(0), AT(1), SIZE(2), INT(3), AT(4), (socklen_t)SIZE(5));
	case SYS_sendmsg: return sendmsg(INT(0), AT(1), INT(2));
	case SYS_sendmmsg: return sendmmsg(INT(0), AT(1), (unsigned)SIZE(2), (MESSAGE_FLAGS)SIZE(3));
	case SYS_recvfrom: return recvfrom(INT(0), AT(1), SIZE(2), INT(3), AT(4), AT(5));
	case SYS_recvmsg: return recvmsg(INT(0), AT(1), INT(2));
	case SYS_recvmmsg: return recvmmsg(INT(0), AT(1), (unsigned)SIZE(2), (MESSAGE_FLAGS)SIZE(3), AT(4));
	case SYS_execve: return execve(AT(0), AT(1), AT(2));
	case SYS_execveat: return execveat(INT(0), AT(1), AT(2), AT(3), INT(4));
	case SYS_io_uring_setup: tell_refused("io_uring"); return failed(-ENOSYS);
	default:
		return real_syscall ? real_syscall(number, a[0].number, a[1].number, a[2].number, a[3].number, a[4].number, a[5].number)
				    : failed(-ENOSYS);
	}
}
