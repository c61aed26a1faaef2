/* SPDX-License-Identifier: Apache-2.0 */
/* What differs between machines in inject.c. */
#ifndef SMV_VMM_INJECT_ARCH_H
#define SMV_VMM_INJECT_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

struct smv_arch_pattern {
	const unsigned char *bytes;
	size_t len;
};

/* Machine code that is looked for in the process. */
extern const struct smv_arch_pattern smv_arch_call_code[];   /* system call, return */
extern const struct smv_arch_pattern smv_arch_return_code[]; /* rt_sigreturn */
extern const size_t smv_arch_nr_call_codes, smv_arch_nr_return_codes;

struct smv_arch_code {
	uint64_t call, sigreturn; /* where it was found */
};

#define SMV_ARCH_FRAME_MAX 24576

/* What is put on the stack: a text, and below it the way back. */
struct smv_arch_frame {
	unsigned char bytes[SMV_ARCH_FRAME_MAX] __attribute__((aligned(64)));
	uint64_t addr; /* of bytes[0] in the process */
	size_t len;
	uint64_t text_addr;
};

/** smv_arch_is_native - are these registers of a thread in 64-bit code? */
bool smv_arch_is_native(const struct user_regs_struct *regs);

/**
 * smv_arch_make_frame - lay out the frame below the stack of @tid, which is stopped with @regs and
 * has signal mask @mask. -ENOTSUP when this thread's state cannot be put into a frame.
 */
int smv_arch_make_frame(pid_t tid, const struct user_regs_struct *regs, uint64_t mask,
	const struct smv_arch_code *code, const char *text, struct smv_arch_frame *frame);

/** smv_arch_call_regs - from @regs those that make a call and then return by the frame. */
struct user_regs_struct smv_arch_call_regs(const struct user_regs_struct *regs,
	const struct smv_arch_code *code, const struct smv_arch_frame *frame, long nr,
	const uint64_t args[6]);

#endif
