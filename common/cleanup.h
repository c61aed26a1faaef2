/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scope-bound clean-up: a variable declared with one of these attributes is released when it goes
 * out of scope, so every early return is correct. To hand a value on, move it out with smv_take().
 */
#ifndef SMV_COMMON_CLEANUP_H
#define SMV_COMMON_CLEANUP_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void smv_cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void smv_cleanup_close(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void smv_cleanup_json(json_t **j)
{
	json_decref(*j);
}

static inline void smv_cleanup_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define CLEANUP_FREE __attribute__((cleanup(smv_cleanup_free)))
#define CLEANUP_CLOSE __attribute__((cleanup(smv_cleanup_close)))
#define CLEANUP_JSON __attribute__((cleanup(smv_cleanup_json)))
#define CLEANUP_FILE __attribute__((cleanup(smv_cleanup_file)))

/** smv_take_fd - move a file descriptor out of a CLEANUP_CLOSE variable. */
static inline int smv_take_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

/** smv_take - move a pointer out of a CLEANUP_FREE or CLEANUP_JSON variable. */
#define smv_take(p)                                                                                \
	({                                                                                         \
		__typeof__(p) smv_taken_ = (p);                                                    \
		(p) = NULL;                                                                        \
		smv_taken_;                                                                        \
	})

#define SMV_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#endif
