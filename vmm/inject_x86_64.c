/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame is struct rt_sigframe of arch/x86/include/asm/sigframe.h in the kernel; its way back is
 * rt_sigreturn in arch/x86/kernel/signal_64.c.
 */
#include "vmm/inject_arch.h"

#include "common/cleanup.h"

#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <ucontext.h>

#define RED_ZONE 128
#define USER_CS 0x33 /* 64-bit code */

/* asm/sigcontext.h, which does not get along with glibc's headers */
#define FP_XSTATE_MAGIC1 0x46505853u
#define FP_XSTATE_MAGIC2 0x46505845u
#define SW_BYTES_OFFSET 464
#define UC_FP_XSTATE 0x1u
#define UC_SIGCONTEXT_SS 0x2u
#define UC_STRICT_RESTORE_SS 0x4u
#define XFEATURES_ON_DEMAND (3ull << 17) /* AMX: not in the frames of those who do not use it */

/* linux/errno.h: what only the kernel and a tracer see */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

struct fpx_sw_bytes {
	uint32_t magic1, extended_size;
	uint64_t xfeatures;
	uint32_t xstate_size, padding[7];
};

/* The part of ucontext_t that the kernel reads, behind the return address. */
#define UC_BYTES (offsetof(ucontext_t, uc_sigmask) + sizeof(uint64_t))

const struct smv_arch_pattern smv_arch_call_code[] = {
	{(const unsigned char *)"\x0f\x05\xc3", 3} /* syscall; ret */
};
const struct smv_arch_pattern smv_arch_return_code[] = {
	/* mov $15,%rax; syscall: in glibc, which gives it to the kernel as SA_RESTORER */
	{(const unsigned char *)"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", 9},
	/* mov $15,%eax; syscall */
	{(const unsigned char *)"\xb8\x0f\x00\x00\x00\x0f\x05", 7},
};
const size_t smv_arch_nr_call_codes = SMV_ARRAY_SIZE(smv_arch_call_code);
const size_t smv_arch_nr_return_codes = SMV_ARRAY_SIZE(smv_arch_return_code);

bool smv_arch_is_native(const struct user_regs_struct *regs)
{
	return regs->cs == USER_CS;
}

/* The size that the kernel expects in frames of threads with these features: where the last ends.
 */
static uint32_t xstate_size(uint64_t xfeatures)
{
	uint32_t size = 512 + 64; /* FXSAVE's area and the header */

	for (unsigned int i = 2; i < 63; i++) {
		uint32_t bytes, offset, c, d;

		if (!(xfeatures >> i & 1) || !__get_cpuid_count(0xd, i, &bytes, &offset, &c, &d))
			continue;
		if (offset + bytes > size)
			size = offset + bytes;
	}
	return size;
}

/* Read the extended state to the end of the frame's bytes, as it is in a signal frame, with its two
 * marks. *len: its bytes. */
static int get_fpstate(pid_t tid, unsigned char *fp, size_t room, size_t *len)
{
	/* The kernel wants a multiple of 8. */
	struct iovec iov = {fp, room - 64};
	struct fpx_sw_bytes sw = {.magic1 = FP_XSTATE_MAGIC1};
	const uint32_t magic2 = FP_XSTATE_MAGIC2;
	uint64_t in_use;

	if (ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &iov) < 0)
		return errno == ENODEV ? -ENOTSUP : -errno;
	if (iov.iov_len < 512 + 64 || iov.iov_len >= room - 64)
		return -ENOTSUP;
	/* The kernel tells there what XCR0 is. */
	memcpy(&sw.xfeatures, fp + SW_BYTES_OFFSET, sizeof(sw.xfeatures));
	memcpy(&in_use, fp + 512, sizeof(in_use));
	if (!(in_use & XFEATURES_ON_DEMAND))
		sw.xfeatures &= ~XFEATURES_ON_DEMAND;
	sw.xstate_size = xstate_size(sw.xfeatures);
	if (sw.xstate_size > iov.iov_len)
		return -ENOTSUP;
	sw.extended_size = sw.xstate_size + (uint32_t)sizeof(magic2);
	memcpy(fp + SW_BYTES_OFFSET, &sw, sizeof(sw));
	memcpy(fp + sw.xstate_size, &magic2, sizeof(magic2));
	*len = sw.extended_size;
	return 0;
}

static void set_gregs(ucontext_t *uc, const struct user_regs_struct *r)
{
	greg_t *g = uc->uc_mcontext.gregs;
	long rax = (long)r->rax;
	bool restart = (long)r->orig_rax >= 0 &&
		       (rax == -ERESTARTSYS || rax == -ERESTARTNOINTR || rax == -ERESTARTNOHAND);

	g[REG_R8] = (greg_t)r->r8;
	g[REG_R9] = (greg_t)r->r9;
	g[REG_R10] = (greg_t)r->r10;
	g[REG_R11] = (greg_t)r->r11;
	g[REG_R12] = (greg_t)r->r12;
	g[REG_R13] = (greg_t)r->r13;
	g[REG_R14] = (greg_t)r->r14;
	g[REG_R15] = (greg_t)r->r15;
	g[REG_RDI] = (greg_t)r->rdi;
	g[REG_RSI] = (greg_t)r->rsi;
	g[REG_RBP] = (greg_t)r->rbp;
	g[REG_RBX] = (greg_t)r->rbx;
	g[REG_RDX] = (greg_t)r->rdx;
	g[REG_RCX] = (greg_t)r->rcx;
	g[REG_RSP] = (greg_t)r->rsp;
	g[REG_EFL] = (greg_t)r->eflags;
	g[REG_CSGSFS] = (greg_t)(r->cs | r->ss << 48);
	/* An interrupted system call is made again; one that must know how far it was is not. */
	g[REG_RAX] = restart                                                   ? (greg_t)r->orig_rax
		     : (long)r->orig_rax >= 0 && rax == -ERESTART_RESTARTBLOCK ? -EINTR
									       : rax;
	g[REG_RIP] = (greg_t)(restart ? r->rip - 2 : r->rip);
}

int smv_arch_make_frame(pid_t tid, const struct user_regs_struct *regs, uint64_t mask,
	const struct smv_arch_code *code, const char *text, struct smv_arch_frame *frame)
{
	unsigned char fp[SMV_ARCH_FRAME_MAX - 2048] __attribute__((aligned(64)));
	size_t text_len = text ? strlen(text) + 1 : 0, fp_len = 0;
	uint64_t fp_addr, uc_addr;
	ucontext_t uc = {.uc_flags = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
		/* Flags that are none: the alternate stack, which we do not know, stays as it is.
		 */
		.uc_stack.ss_flags = 0x7fff};
	int r = get_fpstate(tid, fp, sizeof(fp), &fp_len);

	if (r < 0)
		return r;
	frame->text_addr = (regs->rsp - RED_ZONE - text_len) & ~15ull;
	fp_addr = (frame->text_addr - fp_len) & ~63ull;
	uc_addr = (fp_addr - UC_BYTES) & ~15ull;
	frame->addr = uc_addr - sizeof(uint64_t);
	frame->len = frame->text_addr + text_len - frame->addr;
	if (frame->len > sizeof(frame->bytes))
		return -ENOTSUP;
	set_gregs(&uc, regs);
	/* The pointer that the kernel reads is where ours points, over there. */
	memcpy(&uc.uc_mcontext.fpregs, &fp_addr, sizeof(fp_addr));
	memcpy(&uc.uc_sigmask, &mask, sizeof(mask));
	memset(frame->bytes, 0, frame->len);
	memcpy(frame->bytes, &code->sigreturn, sizeof(uint64_t));
	memcpy(frame->bytes + sizeof(uint64_t), &uc, UC_BYTES);
	memcpy(frame->bytes + (fp_addr - frame->addr), fp, fp_len);
	if (text)
		memcpy(frame->bytes + (frame->text_addr - frame->addr), text, text_len);
	return 0;
}

struct user_regs_struct smv_arch_call_regs(const struct user_regs_struct *regs,
	const struct smv_arch_code *code, const struct smv_arch_frame *frame, long nr,
	const uint64_t args[6])
{
	struct user_regs_struct r = *regs;

	r.orig_rax = UINT64_MAX; /* no system call that the kernel might restart */
	r.rax = (uint64_t)nr;
	r.rdi = args[0];
	r.rsi = args[1];
	r.rdx = args[2];
	r.r10 = args[3];
	r.r8 = args[4];
	r.r9 = args[5];
	r.rsp = frame->addr;
	r.rip = code->call;
	return r;
}
