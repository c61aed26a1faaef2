/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every program shares on its command line, on top of glibc's argp: --version, --log-level,
 * --insecure (where it listens or connects), and exit status 2 on bad usage.
 */
#ifndef SMV_COMMON_PROGRAM_H
#define SMV_COMMON_PROGRAM_H

#include "common/addr.h"

#include <argp.h>
#include <stdbool.h>

#define SMV_EXIT_USAGE 2

/** smv_program_init - call first in main(): exit status of usage errors, version, SIGPIPE ignored. */
void smv_program_init(void);

/** smv_program_argp - child parser with --log-level; put it into argp.children. */
extern const struct argp smv_program_argp;

/** smv_insecure_check - refuse an address outside loopback and unix sockets without --insecure. */
int smv_insecure_check(const struct smv_addr *addr, bool insecure, struct smv_error *err);

#endif
