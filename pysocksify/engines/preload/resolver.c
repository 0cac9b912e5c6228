/* resolver(3): DNS messages. A search list needs none of libc's steps here: a name is asked for as it's meant. */
#include "shim.h"

/* The answer's size, 0 to let libc ask, or an errno, negative. */
static int ask_dns(const uint8_t *message, size_t length, uint8_t *answer, int size)
{
	static const int most = 65535;
	struct request request = {.op = OP_DNS, .fd = -1, .part = {{(void *)message, length}}, .room = answer,
				  .size = (size_t)(size < most ? size : most)};
	int verdict = aside() ? PROCEED : size < 12 ? -EINVAL : ask(&request);

	return verdict < 0 ? verdict : verdict == PROCEED ? 0 : (int)request.got;
}

/* The question for a name (RFC 1035 section 4.1): its size, or 0 for what is no name. */
static size_t question(const char *name, int class, int type, uint8_t message[512])
{
	uint8_t *length = message + 12, *end = length + 1;

	memset(message, 0, 12);
	RAW(SYS_getrandom, message, 2, 0);
	message[2] = message[5] = 1; /* RD; one question */
	for (; *name; name++) {
		if (*name == '.' && end > length + 1)
			length = end++;
		else if (*name != '.' || name[1])
			*end++ = (uint8_t)(*name == '\\' && name[1] ? *++name : *name);
		*length = (uint8_t)(end - length - 1);
		if (*length > 63 || end - message > 12 + 254)
			return 0;
	}
	if (end == length + 1)
		end = length;
	*end++ = 0;
	*end++ = (uint8_t)(type >> 8), *end++ = (uint8_t)type, *end++ = (uint8_t)(class >> 8), *end++ = (uint8_t)class;
	return (size_t)(end - message);
}

/* res_query(3): the answer's size, 0 to let libc do it, or -1 with *error set (h_errno). */
static int query(const char *name, int class, int type, uint8_t *answer, int size, int *error)
{
	uint8_t message[512];
	size_t length = question(name, class, type, message);
	int count = length || aside() ? ask_dns(message, length, answer, size) : -EINVAL;
	int code = count <= 0 ? count : answer[3] & 15;

	if (!count || (count > 0 && !code && (answer[6] || answer[7])))
		return count;
	*error = !code ? NO_DATA : code == 3 ? HOST_NOT_FOUND : code == 2 ? TRY_AGAIN : NO_RECOVERY;
	return -1;
}

static const char *joined(const char *name, const char *domain, char room[NS_MAXDNAME])
{
	snprintf(room, NS_MAXDNAME, "%s%s%s", name, domain && *domain ? "." : "", domain ? domain : "");
	return room;
}

/* The count, or what libc's function answers, if there is one. */
#define OR_SYSTEM(count, real, ...) (count ? count : real ? real(__VA_ARGS__) : (h_errno = NO_RECOVERY, -1))

#define HOOK_QUERY(name)                                                                                               \
	int name(const char *dname, int class, int type, uint8_t *answer, int size)                                    \
	{                                                                                                              \
		int count = query(dname, class, type, answer, size, &h_errno);                                         \
                                                                                                                       \
		return OR_SYSTEM(count, real_##name, dname, class, type, answer, size);                                \
	}                                                                                                              \
	ALIAS(__##name, name)
HOOK_QUERY(res_query)
HOOK_QUERY(res_search)

int res_querydomain(const char *name, const char *domain, int class, int type, uint8_t *answer, int size)
{
	char room[NS_MAXDNAME];

	return res_query(joined(name, domain, room), class, type, answer, size);
}
ALIAS(__res_querydomain, res_querydomain)

int res_send(const uint8_t *message, int length, uint8_t *answer, int size)
{
	int count = (int)failed(ask_dns(message, (size_t)length, answer, size));

	return OR_SYSTEM(count, real_res_send, message, length, answer, size);
}
ALIAS(__res_send, res_send)

#ifdef __GLIBC__
#define HOOK_STATE_QUERY(name)                                                                                         \
	int name(res_state state, const char *dname, int class, int type, uint8_t *answer, int size)                   \
	{                                                                                                              \
		int count = query(dname, class, type, answer, size, &state->res_h_errno);                              \
                                                                                                                       \
		return OR_SYSTEM(count, real_##name, state, dname, class, type, answer, size);                         \
	}                                                                                                              \
	ALIAS(__##name, name)
HOOK_STATE_QUERY(res_nquery)
HOOK_STATE_QUERY(res_nsearch)

int res_nquerydomain(res_state state, const char *name, const char *domain, int class, int type, uint8_t *answer, int size)
{
	char room[NS_MAXDNAME];

	return res_nquery(state, joined(name, domain, room), class, type, answer, size);
}
ALIAS(__res_nquerydomain, res_nquerydomain)

int res_nsend(res_state state, const uint8_t *message, int length, uint8_t *answer, int size)
{
	int count = (int)failed(ask_dns(message, (size_t)length, answer, size));

	return OR_SYSTEM(count, real_res_nsend, state, message, length, answer, size);
}
ALIAS(__res_nsend, res_nsend)
#endif
