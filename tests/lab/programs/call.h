/* System calls of one's own, with no libc in between. x86_64 and aarch64. */
#ifndef LAB_CALL_H
#define LAB_CALL_H

typedef unsigned long word;

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, SOCKET = 41, CONNECT = 42, EXIT = 231 };

static long call(long number, word a, word b, word c)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, SOCKET = 198, CONNECT = 203, EXIT = 94 };

static long call(long number, word a, word b, word c)
{
	register long x8 __asm__("x8") = number;
	register word x0 __asm__("x0") = a;
	register word x1 __asm__("x1") = b;
	register word x2 __asm__("x2") = c;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return (long)x0;
}
#else
#error "no system call instruction known for this machine"
#endif

#endif
