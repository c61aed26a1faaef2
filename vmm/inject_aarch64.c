/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame is struct rt_sigframe of arch/arm64/kernel/signal.c. Differences to x86-64: when a
 * tracer sees the registers of an interrupted system call they are set for its restart already, a
 * relative time-out then begins anew; and the frame holds the 128-bit registers only: should we
 * die, a thread that we interrupted in the middle of SVE code would lose the upper parts (one in a
 * system call has none). So such a thread is not taken. Compiled, never run: nobody has tried it
 * yet.
 */
#include "vmm/inject_arch.h"

#include "common/cleanup.h"

#include <asm/ptrace.h>
#include <asm/sigcontext.h>
#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <ucontext.h>

#ifndef NT_ARM_SVE
#define NT_ARM_SVE 0x405
#endif
#define SIGINFO_BYTES 128

const struct smv_arch_pattern smv_arch_call_code[] = {
	/* svc #0; ret */
	{(const unsigned char *)"\x01\x00\x00\xd4\xc0\x03\x5f\xd6", 8},
};
const struct smv_arch_pattern smv_arch_return_code[] = {
	/* mov x8, #139; svc #0: in the vdso */
	{(const unsigned char *)"\x68\x11\x80\xd2\x01\x00\x00\xd4", 8},
};
const size_t smv_arch_nr_call_codes = SMV_ARRAY_SIZE(smv_arch_call_code);
const size_t smv_arch_nr_return_codes = SMV_ARRAY_SIZE(smv_arch_return_code);

bool smv_arch_is_native(const struct user_regs_struct *regs)
{
	(void)regs; /* a 32-bit thread has fewer of them */
	return true;
}

static bool has_live_sve(pid_t tid)
{
	struct user_sve_header header = {0};
	struct iovec iov = {&header, sizeof(header)};

	return ptrace(PTRACE_GETREGSET, tid, NT_ARM_SVE, &iov) == 0 &&
	       (header.flags & SVE_PT_REGS_MASK) == SVE_PT_REGS_SVE;
}

static int get_fpsimd(pid_t tid, struct fpsimd_context *context)
{
	struct user_fpsimd_struct regs;
	struct iovec iov = {&regs, sizeof(regs)};

	if (has_live_sve(tid))
		return -ENOTSUP;
	if (ptrace(PTRACE_GETREGSET, tid, NT_PRFPREG, &iov) < 0)
		return -errno;
	context->head.magic = FPSIMD_MAGIC;
	context->head.size = sizeof(*context);
	context->fpsr = regs.fpsr;
	context->fpcr = regs.fpcr;
	memcpy(context->vregs, regs.vregs, sizeof(context->vregs));
	return 0;
}

int smv_arch_make_frame(pid_t tid, const struct user_regs_struct *regs, uint64_t mask,
	const struct smv_arch_code *code, const char *text, struct smv_arch_frame *frame)
{
	size_t text_len = text ? strlen(text) + 1 : 0;
	struct fpsimd_context fp = {0};
	/* Flags that are none: the alternate stack, which we do not know, stays as it is. */
	ucontext_t uc = {.uc_stack.ss_flags = 0x7fff};
	int r = get_fpsimd(tid, &fp);

	(void)code; /* the link register leads there */
	if (r < 0)
		return r;
	frame->text_addr = (regs->sp - text_len) & ~15ull;
	frame->addr = (frame->text_addr - SIGINFO_BYTES - sizeof(uc)) & ~15ull;
	frame->len = frame->text_addr + text_len - frame->addr;
	if (frame->len > sizeof(frame->bytes))
		return -ENOTSUP;
	memcpy(uc.uc_mcontext.regs, regs->regs, sizeof(uc.uc_mcontext.regs));
	uc.uc_mcontext.sp = regs->sp;
	uc.uc_mcontext.pc = regs->pc;
	uc.uc_mcontext.pstate = regs->pstate;
	/* Zeros behind it end the list of contexts. */
	memcpy(uc.uc_mcontext.__reserved, &fp, sizeof(fp));
	memcpy(&uc.uc_sigmask, &mask, sizeof(mask));
	memset(frame->bytes, 0, frame->len);
	memcpy(frame->bytes + SIGINFO_BYTES, &uc, sizeof(uc));
	if (text)
		memcpy(frame->bytes + (frame->text_addr - frame->addr), text, text_len);
	return 0;
}

struct user_regs_struct smv_arch_call_regs(const struct user_regs_struct *regs,
	const struct smv_arch_code *code, const struct smv_arch_frame *frame, long nr,
	const uint64_t args[6])
{
	struct user_regs_struct r = *regs;

	for (unsigned int i = 0; i < 6; i++)
		r.regs[i] = args[i];
	r.regs[8] = (uint64_t)nr;
	r.regs[30] = code->sigreturn;
	r.sp = frame->addr;
	r.pc = code->call;
	return r;
}
