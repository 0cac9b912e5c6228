/*
 * Programs that the program executes, and modules that it loads. A new program must be such that the shim gets into it,
 * as the supervisor says, who also names the shim's object for its libc; and its environment must say so.
 */
#include "shim.h"

#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>

#define PRELOAD "LD_PRELOAD"
#define SHIM "/pysocksify/engines/preload/shim-"

struct execution {
	enum { EXECVE, EXECVPE, FEXECVE, EXECVEAT, SPAWN, SPAWNP } how;
	int fd;
	const char *path;
	char *const *argv, *const *environment;
	int flags;
	pid_t *pid;
	const posix_spawn_file_actions_t *actions;
	const posix_spawnattr_t *attributes;
};

struct preloading {
	const char *value, *others; /* of VARIABLE and PRELOAD in the environment given */
	size_t entries;		    /* of that environment */
	const char *object;	    /* which PRELOAD is to name; NULL: nothing is to be changed */
	char room[PATH_MAX];
};

static int perform(const struct execution *x, char *const *environment)
{
	switch (x->how) {
	case EXECVE:
		return (int)KERNEL(execve, x->path, x->argv, environment);
	case EXECVPE:
		return real_execvpe(x->path, x->argv, environment);
	case FEXECVE:
		return real_fexecve(x->fd, x->argv, environment);
	case EXECVEAT:
		return (int)failed(RAW(SYS_execveat, x->fd, x->path, x->argv, environment, x->flags));
	case SPAWN:
		return real_posix_spawn(x->pid, x->path, x->actions, x->attributes, x->argv, environment);
	default:
		return real_posix_spawnp(x->pid, x->path, x->actions, x->attributes, x->argv, environment);
	}
}

/* The file that PATH has by a name, as exec(3) finds it, opened; or an errno, negative. */
static int find_file(const char *name, char path[PATH_MAX])
{
	const char *search = getenv("PATH"), *end;

	for (search = search ? search : "/bin:/usr/bin"; *name; search = end + 1) {
		end = strchrnul(search, ':');
		size_t folder = (size_t)(end - search);
		if (folder + strlen(name) + 2 < PATH_MAX) {
			memcpy(path, search, folder);
			strcpy(stpcpy(path + folder, folder ? "/" : ""), name);
			int fd = (int)one_more(SYS_openat, AT_FDCWD, (long)path, O_PATH | O_CLOEXEC | O_DIRECTORY, 0);
			if (fd >= 0)
				RAW(SYS_close, fd);
			else if (!RAW(SYS_faccessat, AT_FDCWD, path, X_OK))
				return (int)one_more(SYS_openat, AT_FDCWD, (long)path, O_PATH | O_CLOEXEC, 0);
		}
		if (!*end)
			break;
	}
	return -ENOENT;
}

static int open_file(const struct execution *x, const char **path, char found[PATH_MAX])
{
	int flags = O_PATH | O_CLOEXEC | (x->how == EXECVEAT && x->flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0);

	*path = x->path ? x->path : "";
	if (x->how == FEXECVE || (x->how == EXECVEAT && x->flags & AT_EMPTY_PATH && !**path))
		return (int)one_more(SYS_fcntl, x->fd, F_DUPFD_CLOEXEC, 0, 0);
	if ((x->how == EXECVPE || x->how == SPAWNP) && !strchr(*path, '/')) {
		*path = found;
		return find_file(x->path, found);
	}
	return (int)one_more(SYS_openat, x->how == EXECVEAT ? x->fd : AT_FDCWD, (long)*path, flags, 0);
}

static const char *value_of(const char *entry, const char *name)
{
	size_t size = strlen(name);

	return !strncmp(entry, name, size) && entry[size] == '=' ? entry + size + 1 : NULL;
}

/* Whether it may run, and what must be preloaded; 0, or an errno, negative. */
static int look_into(const struct execution *x, struct preloading *p)
{
	struct request request = {.op = OP_EXEC, .room = p->room, .size = sizeof p->room - 1};
	const char *path, *value;
	char found[PATH_MAX];
	int verdict;

	p->value = p->object = NULL, p->others = "", p->entries = 0;
	for (char *const *entry = x->environment; entry && *entry; entry++, p->entries++) {
		p->value = p->value ? p->value : value_of(*entry, VARIABLE);
		p->others = (value = value_of(*entry, PRELOAD)) ? value : p->others;
	}
	if (aside() || (p->value && !*p->value))
		return 0;
	p->object = own_object;
	request.fd = open_file(x, &path, found);
	if (request.fd < 0) /* the kernel is going to say so too, or posix_spawn(3) finds it in another directory */
		return request.fd == -EMFILE || request.fd == -ENFILE || request.fd == -ENOMEM ? request.fd : 0;
	request.part[0] = (struct iovec){(void *)path, strlen(path)};
	verdict = ask(&request);
	RAW(SYS_close, request.fd);
	if (verdict < 0)
		return verdict == -ECONNREFUSED ? -EACCES : verdict;
	p->room[request.got] = '\0';
	p->object = p->room;
	if (!RAW(SYS_faccessat, AT_FDCWD, p->object, R_OK))
		return 0;
	tell_refused("a program in a root directory or of a user that the shim's file isn't there for");
	return -EACCES;
}

#define LIST_SIZE(p) (sizeof PRELOAD "=:" + strlen((p)->object) + strlen((p)->others))

/* The entry for PRELOAD: our object, and once more what others have there. */
static const char *write_list(char *list, const struct preloading *p)
{
	char *end = stpcpy(stpcpy(list, PRELOAD "="), p->object);

	for (const char *other = p->others; *other; other += *other != '\0') {
		size_t size = strcspn(other, ": ");
		const char *ours = strstr(other, SHIM);

		if (size && !(ours && ours < other + size)) {
			*end++ = ':';
			end = mempcpy(end, other, size);
		}
		other += size;
	}
	*end = '\0';
	return value_of(list, PRELOAD);
}

/* As exec(3) or posix_spawn(3) has it: -1 and errno, or the errno itself. */
static int execute(const struct execution *x)
{
	struct preloading p;
	int error = look_into(x, &p);

	if (error)
		return x->how >= SPAWN ? -error : (int)failed(error);
	if (!p.object)
		return perform(x, x->environment);
	char *environment[p.entries + 3], **next = environment, list[LIST_SIZE(&p)];
	for (size_t i = 0; i < p.entries; i++)
		if (!value_of(x->environment[i], PRELOAD))
			*next++ = x->environment[i];
	write_list(list, &p);
	*next++ = list;
	*next++ = p.value ? NULL : variable;
	*next = NULL;
	return perform(x, environment);
}

#define EXECUTE(...) execute(&(struct execution){__VA_ARGS__, .argv = argv, .environment = environment})

int execve(const char *path, char *const argv[], char *const environment[])
{
	return EXECUTE(.how = EXECVE, .path = path);
}

int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

int execvpe(const char *file, char *const argv[], char *const environment[])
{
	return EXECUTE(.how = EXECVPE, .path = file);
}

int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

int fexecve(int fd, char *const argv[], char *const environment[])
{
	return EXECUTE(.how = FEXECVE, .fd = fd);
}

int execveat(int fd, const char *path, char *const argv[], char *const environment[], int flags)
{
	return EXECUTE(.how = EXECVEAT, .fd = fd, .path = path, .flags = flags);
}

int posix_spawn(pid_t *restrict pid, const char *restrict path, const posix_spawn_file_actions_t *actions,
		const posix_spawnattr_t *restrict attributes, char *const argv[restrict], char *const environment[restrict])
{
	return EXECUTE(.how = SPAWN, .path = path, .pid = pid, .actions = actions, .attributes = attributes);
}

int posix_spawnp(pid_t *restrict pid, const char *restrict file, const posix_spawn_file_actions_t *actions,
		 const posix_spawnattr_t *restrict attributes, char *const argv[restrict], char *const environment[restrict])
{
	return EXECUTE(.how = SPAWNP, .path = file, .pid = pid, .actions = actions, .attributes = attributes);
}

/* The arguments of an execl(), from `first` up to NULL, as an array on the stack; `last` is left behind them. */
#define ARGUMENTS(argv, first, last)                                                                                   \
	va_list last;                                                                                                  \
	size_t count_ = 1;                                                                                             \
	va_start(last, first);                                                                                         \
	while (va_arg(last, char *))                                                                                   \
		count_++;                                                                                              \
	va_end(last);                                                                                                  \
	char *argv[count_ + 1];                                                                                        \
	argv[0] = (char *)first;                                                                                       \
	va_start(last, first);                                                                                         \
	for (size_t i_ = 1; i_ <= count_; i_++)                                                                        \
		argv[i_] = va_arg(last, char *);

int execl(const char *path, const char *first, ...)
{
	ARGUMENTS(argv, first, last)
	va_end(last);
	return execve(path, argv, environ);
}

int execlp(const char *file, const char *first, ...)
{
	ARGUMENTS(argv, first, last)
	va_end(last);
	return execvpe(file, argv, environ);
}

int execle(const char *path, const char *first, ...)
{
	ARGUMENTS(argv, first, last)
	char **environment = va_arg(last, char **);
	va_end(last);
	return execve(path, argv, environment);
}

/* libc's own exec of a shell passes no hook: the environment is made right before it. */
static int may_call_shell(void)
{
	const struct execution shell = {.how = EXECVE, .path = "/bin/sh", .environment = environ};
	struct preloading p;
	int error = look_into(&shell, &p);

	if (error || !p.object)
		return !failed(error);
	char list[LIST_SIZE(&p)];
	const char *value = write_list(list, &p);
	if (strcmp(p.others, value) != 0)
		setenv(PRELOAD, value, 1);
	if (!p.value)
		setenv(VARIABLE, value_of(variable, VARIABLE), 1);
	return 1;
}

int system(const char *command)
{
	return may_call_shell() ? real_system(command) : -1;
}

FILE *popen(const char *command, const char *mode)
{
	return may_call_shell() ? real_popen(command, mode) : NULL;
}

/* A module with RTLD_DEEPBIND would find libc's connect() before ours. A jump: dlopen() looks at who called it. */
void *dlopen(const char *file, int mode)
{
#ifdef RTLD_DEEPBIND
	mode = aside() ? mode : mode & ~RTLD_DEEPBIND;
#endif
	return real_dlopen(file, mode);
}
