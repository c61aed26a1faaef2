/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pager under a guest that runs by KVM: pager_kvm [SEED [SECONDS [model] [wrong]]].
 *
 * A VMM of two virtual CPUs and one device, a port. Its guest, a few instructions in flat 32-bit
 * protected mode, takes pages of its RAM at random, sees whether they hold what it wrote last, and
 * rewrites some; its code and the versions that it wrote lie beside that RAM, in memory that is not
 * paged. Meanwhile page-table entries are removed at random, signals interrupt the virtual CPUs,
 * and one pager after the other ends and is taken over from.
 *
 * model: no KVM; threads of this process do what the guest does. wrong: mismatches are expected (a
 * fault point makes the pager wrong). Exit status 77: KVM cannot run this guest here.
 */
#include "client/uffd.h"
#include "common/clock.h"
#include "vm_stub.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define NR_PAGES 12288u
#define BUDGET (NR_PAGES / 3)
#define NR_EXTENTS 24u
#define NR_VCPUS 2u
#define DEADLINE_S 60

/* Guest addresses: RAM from 0, behind it: */
#define NOTES 0x80000000u
#define NOTES_CODE 0u /* offsets in the notes */
#define NOTES_CPUS SMV_PAGE_SIZE
#define NOTES_VERSIONS (16 * SMV_PAGE_SIZE)
#define NOTES_BYTES (NOTES_VERSIONS + (NR_PAGES * sizeof(uint32_t) + 4095) / 4096 * 4096)
#define PORT_DONE 0xf4
#define PORT_MISMATCH 0xf5

/* What a virtual CPU works on, in a page of its own of the notes whose end is its stack. Offsets
 * appear in the guest's code. */
struct guest_cpu {
	uint32_t random;             /*  0: the state of a linear congruential generator */
	uint32_t nr_pages;           /*  4: it has the pages first + i * stride, i below this */
	uint32_t stride;             /*  8 */
	uint32_t first;              /* 12 */
	uint32_t versions;           /* 16: guest address of the version of page 0 */
	uint32_t seed;               /* 20 */
	_Atomic uint32_t stop;       /* 24: asks for PORT_DONE at the next page */
	uint32_t checks;             /* 28 */
	_Atomic uint32_t mismatches; /* 32 */
	uint32_t writes;             /* 36 */
};

#if defined(__x86_64__)
/* %ebp: its struct guest_cpu; %esi: page. Of eight turns one writes unseen, one looks and writes,
 * and six only look. The words of a page are the multiples of its key, see page_key(). */
__asm__(".pushsection .rodata\n"
	".code32\n"
	"guest_code:\n"
	"	cmpl	$0, 24(%ebp)\n"
	"	jne	5f\n"
	"	call	1f\n"
	"	shrl	$8, %eax\n"
	"	xorl	%edx, %edx\n"
	"	divl	4(%ebp)\n"
	"	imull	8(%ebp), %edx\n"
	"	addl	12(%ebp), %edx\n"
	"	movl	%edx, %esi\n"
	"	call	1f\n"
	"	shrl	$29, %eax\n"
	"	movl	%eax, %ebx\n"
	"	jz	3f\n"
	/* look */
	"	movl	16(%ebp), %edx\n"
	"	movl	(%edx,%esi,4), %edx\n"
	"	call	2f\n"
	"	incl	28(%ebp)\n"
	"	xorl	%eax, %eax\n"
	"0:	addl	%ecx, %eax\n"
	"	cmpl	%eax, (%edi)\n"
	"	jne	4f\n"
	"	addl	$4, %edi\n"
	"	testl	$4095, %edi\n"
	"	jnz	0b\n"
	"	cmpl	$1, %ebx\n"
	"	jne	guest_code\n"
	/* write */
	"3:	call	1f\n"
	"	orl	$1, %eax\n"
	"	movl	16(%ebp), %edx\n"
	"	movl	%eax, (%edx,%esi,4)\n"
	"	movl	%eax, %edx\n"
	"	call	2f\n"
	"	incl	36(%ebp)\n"
	"	xorl	%eax, %eax\n"
	"0:	addl	%ecx, %eax\n"
	"	movl	%eax, (%edi)\n"
	"	addl	$4, %edi\n"
	"	testl	$4095, %edi\n"
	"	jnz	0b\n"
	"	jmp	guest_code\n"
	/* mismatch: tell the page, and make it good */
	"4:	incl	32(%ebp)\n"
	"	movl	%esi, %eax\n"
	"	outl	%eax, $0xf5\n"
	"	jmp	3b\n"
	"5:	xorl	%eax, %eax\n"
	"	outl	%eax, $0xf4\n"
	"	jmp	guest_code\n"
	/* %eax: the next random number */
	"1:	imull	$1664525, (%ebp), %eax\n"
	"	addl	$1013904223, %eax\n"
	"	movl	%eax, (%ebp)\n"
	"	ret\n"
	/* %ecx: the key of page %esi in version %edx; %edi: its address */
	"2:	movl	%esi, %edi\n"
	"	shll	$12, %edi\n"
	"	xorl	%ecx, %ecx\n"
	"	testl	%edx, %edx\n"
	"	jz	6f\n"
	"	imull	$0x9e3779b1, %esi, %ecx\n"
	"	imull	$0x85ebca6b, %edx, %edx\n"
	"	xorl	%edx, %ecx\n"
	"	xorl	20(%ebp), %ecx\n"
	"	movl	%ecx, %edx\n"
	"	shrl	$15, %edx\n"
	"	xorl	%edx, %ecx\n"
	"	imull	$0xc2b2ae35, %ecx, %ecx\n"
	"	movl	%ecx, %edx\n"
	"	shrl	$13, %edx\n"
	"	xorl	%edx, %ecx\n"
	"	orl	$1, %ecx\n"
	"6:	ret\n"
	"guest_code_end:\n"
	".code64\n"
	".popsection\n");
extern const char guest_code[], guest_code_end[];
#endif

_Static_assert(offsetof(struct guest_cpu, versions) == 16, "as in the guest's code");
_Static_assert(offsetof(struct guest_cpu, stop) == 24, "as in the guest's code");
_Static_assert(offsetof(struct guest_cpu, writes) == 36, "as in the guest's code");

static uint32_t page_key(uint32_t seed, uint32_t page, uint32_t version)
{
	uint32_t key = page * 0x9e3779b1u ^ version * 0x85ebca6bu ^ seed;

	key = (key ^ key >> 15) * 0xc2b2ae35u;
	return version ? (key ^ key >> 13) | 1 : 0;
}

static void fill(const struct stub_lab *lab, void *data, uint64_t page, uint32_t version)
{
	uint32_t *words = data, key = page_key((uint32_t)lab->o.seed, (uint32_t)page, version);

	for (uint32_t i = 0; i < SMV_PAGE_SIZE / sizeof(*words); i++)
		words[i] = key * (i + 1);
}

/* --- the VMM ------------------------------------------------------------------------------ */

struct vcpu {
	struct guest_cpu *cpu;
	unsigned char *ram; /* for the model */
	uint32_t *versions; /* likewise */
	int fd;             /* -1: the model runs */
	struct kvm_run *run;
	size_t run_bytes;
	_Atomic uint64_t interrupts; /* KVM_RUN was interrupted */
	const char *trouble;         /* why it ended, if not in order */
	uint32_t exit_reason;
	pthread_t thread;
};

struct vmm {
	int kvm, vm;
	unsigned char *notes;
	struct vcpu vcpus[NR_VCPUS];
};

#if defined(__x86_64__)
/* NULL or what failed, with errno. */
static const char *add_memory(int vm, uint32_t slot, uint64_t address, void *memory, size_t bytes)
{
	struct kvm_userspace_memory_region region = {.slot = slot,
		.guest_phys_addr = address,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)memory};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? "KVM_SET_USER_MEMORY_REGION"
								  : NULL;
}

static const char *start_state(int vcpu, unsigned int index)
{
	const struct kvm_segment data = {.limit = 0xffffffff,
		.selector = 16,
		.type = 3,
		.present = 1,
		.db = 1,
		.s = 1,
		.g = 1};
	struct kvm_segment code = data;
	struct kvm_regs regs = {.rip = NOTES + NOTES_CODE, .rflags = 2};
	struct kvm_sregs sregs;

	code.selector = 8;
	code.type = 11;
	regs.rbp = NOTES + NOTES_CPUS + index * SMV_PAGE_SIZE;
	regs.rsp = regs.rbp + SMV_PAGE_SIZE;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return "KVM_GET_SREGS";
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 |= 1; /* protected mode */
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
		return "KVM_SET_SREGS";
	return ioctl(vcpu, KVM_SET_REGS, &regs) < 0 ? "KVM_SET_REGS" : NULL;
}

static const char *make_vcpu(struct vmm *m, unsigned int index)
{
	struct vcpu *v = &m->vcpus[index];
	int bytes = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (bytes <= 0)
		return "KVM_GET_VCPU_MMAP_SIZE";
	if ((v->fd = ioctl(m->vm, KVM_CREATE_VCPU, index)) < 0)
		return "KVM_CREATE_VCPU";
	v->run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		v->run = NULL;
		return "mmap";
	}
	v->run_bytes = (size_t)bytes;
	return start_state(v->fd, index);
}

static const char *make_vm(struct vmm *m, void *ram)
{
	const char *why;

	if ((m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) < 0)
		return "/dev/kvm";
	if ((m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0)) < 0)
		return "KVM_CREATE_VM";
	/* Some processors need a place for it; whether this one does is KVM's business. */
	if (ioctl(m->vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0)
		return "KVM_SET_TSS_ADDR";
	memcpy(m->notes + NOTES_CODE, guest_code, (size_t)(guest_code_end - guest_code));
	if ((why = add_memory(m->vm, 0, 0, ram, NR_PAGES * SMV_PAGE_SIZE)) ||
		(why = add_memory(m->vm, 1, NOTES, m->notes, NOTES_BYTES)))
		return why;
	for (unsigned int i = 0; i < NR_VCPUS && !why; i++)
		why = make_vcpu(m, i);
	return why;
}

#else
static const char *make_vm(struct vmm *m, void *ram)
{
	(void)m;
	(void)ram;
	errno = ENOTSUP;
	return "a guest of another architecture";
}
#endif

/* @ram: of NR_PAGES pages; versions are 0. False: KVM refuses, which is told. */
static bool vmm_create(struct vmm *m, void *ram, uint32_t seed, bool model)
{
	const char *why = NULL;

	memset(m, 0, sizeof(*m));
	m->kvm = m->vm = -1;
	m->notes =
		mmap(NULL, NOTES_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(m->notes != MAP_FAILED);
	for (uint32_t i = 0; i < NR_VCPUS; i++) {
		struct vcpu *v = &m->vcpus[i];

		v->fd = -1;
		v->ram = ram;
		v->versions = (uint32_t *)(m->notes + NOTES_VERSIONS);
		v->cpu = (struct guest_cpu *)(m->notes + NOTES_CPUS + i * SMV_PAGE_SIZE);
		*v->cpu = (struct guest_cpu){.random = seed * NR_VCPUS + i,
			.nr_pages = NR_PAGES / NR_VCPUS,
			.stride = NR_VCPUS,
			.first = i,
			.versions = NOTES + NOTES_VERSIONS,
			.seed = seed};
	}
	if (!model && (why = make_vm(m, ram)))
		fprintf(stderr, "skipped: %s: %s\n", why, strerror(errno));
	return !why;
}

static void vmm_destroy(struct vmm *m)
{
	for (unsigned int i = 0; i < NR_VCPUS; i++) {
		if (m->vcpus[i].run)
			munmap(m->vcpus[i].run, m->vcpus[i].run_bytes);
		if (m->vcpus[i].fd >= 0)
			close(m->vcpus[i].fd);
	}
	if (m->vm >= 0)
		close(m->vm);
	if (m->kvm >= 0)
		close(m->kvm);
	munmap(m->notes, NOTES_BYTES);
}

/* --- virtual CPUs ------------------------------------------------------------------------- */

/* True: it goes on. */
static bool handle_exit(struct vcpu *v)
{
	if (v->run->exit_reason == KVM_EXIT_IO && v->run->io.port == PORT_DONE)
		return false;
	if (v->run->exit_reason == KVM_EXIT_IO && v->run->io.port == PORT_MISMATCH) {
		uint32_t page;

		memcpy(&page, (char *)v->run + v->run->io.data_offset, sizeof(page));
		if (v->cpu->mismatches <= 10)
			fprintf(stderr, "page %u is not what the guest wrote\n", page);
		return true;
	}
	v->exit_reason = v->run->exit_reason;
	v->trouble = "an exit that has no reason here";
	return false;
}

static void run_by_kvm(struct vcpu *v)
{
	bool goes_on = true;

	while (goes_on) {
		if (ioctl(v->fd, KVM_RUN, 0) == 0) {
			goes_on = handle_exit(v);
		} else if (errno == EINTR) {
			v->interrupts++;
		} else {
			v->trouble = strerrorname_np(errno);
			goes_on = false;
		}
	}
}

static uint32_t next_random(struct guest_cpu *cpu)
{
	return cpu->random = cpu->random * 1664525u + 1013904223u;
}

/* Words by volatile accesses: the pager may change what is behind the page at any of them. */
static bool model_look(struct vcpu *v, uint32_t page)
{
	const volatile uint32_t *words = (uint32_t *)(v->ram + (size_t)page * SMV_PAGE_SIZE);
	uint32_t key = page_key(v->cpu->seed, page, v->versions[page]);

	v->cpu->checks++;
	for (uint32_t i = 0; i < SMV_PAGE_SIZE / sizeof(*words); i++)
		if (words[i] != key * (i + 1))
			return false;
	return true;
}

static void model_write(struct vcpu *v, uint32_t page)
{
	volatile uint32_t *words = (uint32_t *)(v->ram + (size_t)page * SMV_PAGE_SIZE);
	uint32_t key;

	v->versions[page] = next_random(v->cpu) | 1;
	key = page_key(v->cpu->seed, page, v->versions[page]);
	v->cpu->writes++;
	for (uint32_t i = 0; i < SMV_PAGE_SIZE / sizeof(*words); i++)
		words[i] = key * (i + 1);
}

static void run_model(struct vcpu *v)
{
	struct guest_cpu *cpu = v->cpu;

	while (!cpu->stop) {
		uint32_t page = (next_random(cpu) >> 8) % cpu->nr_pages * cpu->stride + cpu->first;
		uint32_t turn = next_random(cpu) >> 29;
		bool good = turn == 0 || model_look(v, page);

		cpu->mismatches += !good;
		if (turn <= 1 || !good)
			model_write(v, page);
	}
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;

	if (v->fd >= 0)
		run_by_kvm(v);
	else
		run_model(v);
	return NULL;
}

static void vmm_start(struct vmm *m)
{
	for (unsigned int i = 0; i < NR_VCPUS; i++)
		must(pthread_create(&m->vcpus[i].thread, NULL, vcpu_main, &m->vcpus[i]) == 0);
}

static void vmm_stop(struct vmm *m)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE_S;
	for (unsigned int i = 0; i < NR_VCPUS; i++)
		m->vcpus[i].cpu->stop = 1;
	for (unsigned int i = 0; i < NR_VCPUS; i++)
		must(pthread_timedjoin_np(m->vcpus[i].thread, NULL, &until) == 0);
}

static uint64_t vmm_mismatches(const struct vmm *m)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < NR_VCPUS; i++)
		sum += m->vcpus[i].cpu->mismatches;
	return sum;
}

/* NULL, or why a virtual CPU ended that was not told to. */
static const char *vmm_trouble(const struct vmm *m)
{
	for (unsigned int i = 0; i < NR_VCPUS; i++)
		if (m->vcpus[i].trouble) {
			fprintf(stderr, "virtual CPU %u ended: %s (exit reason %u)\n", i,
				m->vcpus[i].trouble, m->vcpus[i].exit_reason);
			return m->vcpus[i].trouble;
		}
	return NULL;
}

/* Whether KVM runs this guest on ordinary memory: not everywhere that has a /dev/kvm. */
static bool kvm_works(void)
{
	void *ram = mmap(NULL, NR_PAGES * SMV_PAGE_SIZE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vmm m;
	bool works;

	must(ram != MAP_FAILED);
	works = vmm_create(&m, ram, 1, false);
	if (works) {
		vmm_start(&m);
		smv_sleep_ms(200);
		vmm_stop(&m);
		works = !vmm_trouble(&m);
		for (unsigned int i = 0; i < NR_VCPUS; i++)
			works = works && m.vcpus[i].cpu->checks && m.vcpus[i].cpu->writes;
		works = works && !vmm_mismatches(&m);
		if (!works)
			fprintf(stderr, "skipped: KVM does not run the guest on ordinary memory\n");
	}
	vmm_destroy(&m);
	munmap(ram, NR_PAGES * SMV_PAGE_SIZE);
	return works;
}

/* --- the stress --------------------------------------------------------------------------- */

struct pest {
	struct stub_lab *lab;
	struct vmm *m;
	uint64_t zaps, signals;
};

/* What hurts: page-table entries that go by surprise, and signals. */
static void *pester(void *arg)
{
	uint64_t random = 88172645463325252u;
	struct pest *pest = arg;

	while (!pest->lab->stop) {
		uint64_t page;

		random ^= random << 13, random ^= random >> 7, random ^= random << 17;
		page = random % (NR_PAGES - 8);
		must(stub_vm_zap(NULL, (uintptr_t)stub_vm_page(&pest->lab->vm, page),
			     (1 + (random >> 40) % 8) * SMV_PAGE_SIZE) == 0);
		pest->zaps++;
		if (random >> 32 & 1) {
			pthread_kill(pest->m->vcpus[random >> 33 & 1].thread, SIGUSR1);
			pest->signals++;
		}
		usleep((useconds_t)(random >> 50) % 1000);
	}
	return NULL;
}

static void ignore(int sig)
{
	(void)sig;
}

struct totals {
	uint64_t page_ins, evictions, clean, aborted, fetching, out, saved, lost;
	unsigned int takeovers;
};

static void add_stats(struct totals *t, const struct smv_pager_stats *s)
{
	t->page_ins += s->page_ins;
	t->evictions += s->evictions;
	t->clean += s->evictions_clean;
	t->aborted += s->evictions_aborted;
}

static void take_over(struct stub_lab *lab, struct totals *t)
{
	struct smv_taken_over report;
	struct smv_error err = {0};

	stub_lab_stop(lab);
	add_stats(t, &lab->stats);
	must(stub_lab_take_over(lab, &report, &err) == 0);
	stub_lab_start(lab);
	t->takeovers++;
	t->fetching += report.fetching;
	t->out += report.out;
	t->saved += report.saved;
	t->lost += report.lost;
}

/* Where mismatches are expected, until there are some. */
static void stress(
	struct stub_lab *lab, struct vmm *m, unsigned int seconds, bool wrong, struct totals *t)
{
	uint64_t end = smv_now_ns() + (wrong ? DEADLINE_S : seconds) * SMV_NS_PER_S;
	uint64_t random = lab->o.seed;
	struct pest pest = {.lab = lab, .m = m};
	pthread_t thread;

	vmm_start(m);
	must(pthread_create(&thread, NULL, pester, &pest) == 0);
	while (smv_now_ns() < end && !vmm_trouble(m) && !(wrong && vmm_mismatches(m))) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		stub_watch(lab, 20 + (unsigned int)(random >> 33) % 200);
		take_over(lab, t);
	}
	stub_watch(lab, 100);
	lab->stop = true;
	pthread_join(thread, NULL);
	vmm_stop(m);
	printf("%lu zaps, %lu signals, ", pest.zaps, pest.signals);
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, interrupts = 0, writes = 0;
	unsigned int seconds = argc > 2 ? (unsigned int)strtoul(argv[2], NULL, 0) : 5, faults;
	bool model = false, wrong = false, ok;
	struct stub_options o = {.transport = seed & 1 ? "tcp" : "mem",
		.seed = seed,
		.nr_blocks = 1,
		.nr_pages = NR_PAGES,
		.budget_pages = BUDGET,
		.nr_extents = NR_EXTENTS,
		.hot_percent = 30,
		.zero_percent = 10,
		.fill = fill};
	struct sigaction action = {.sa_handler = ignore};
	static struct stub_lab lab;
	struct smv_error err = {0};
	struct totals t = {0};
	uint32_t *versions;
	struct vmm m;

	for (int i = 3; i < argc; i++) {
		model |= strcmp(argv[i], "model") == 0;
		wrong |= strcmp(argv[i], "wrong") == 0;
	}
	if (smv_kernel_check(&err) < 0) {
		fprintf(stderr, "skipped: %s\n", err.message);
		return 77;
	}
	sigaction(SIGUSR1, &action, NULL);
	if (!model && !kvm_works())
		return 77;
	o.kernel_faults = !model;
	stub_lab_create(&lab, &o);
	must(vmm_create(&m, stub_vm_page(&lab.vm, 0), (uint32_t)seed, model));
	/* The guest keeps the versions from here on. */
	versions = lab.versions;
	lab.versions = m.vcpus[0].versions;
	memcpy(lab.versions, versions, NR_PAGES * sizeof(*versions));

	stub_lab_start(&lab);
	stress(&lab, &m, seconds, wrong, &t);
	stub_run(&lab, stub_read_all);
	stub_lab_stop(&lab);
	add_stats(&t, &lab.stats);
	faults = stub_audit(&lab);
	lab.mismatches += vmm_mismatches(&m);
	for (unsigned int i = 0; i < NR_VCPUS; i++) {
		lab.checks += m.vcpus[i].cpu->checks;
		writes += m.vcpus[i].cpu->writes;
		interrupts += m.vcpus[i].interrupts;
	}
	printf("%s, seed %lu, %s: %lu checks, %lu writes, %lu mismatches, %u faults in the audit; "
	       "%lu interrupted runs; %u takeovers (%lu pages fetched, %lu evicted, %lu saved, "
	       "%lu lost); %lu page-ins, %lu evictions (%lu clean, %lu aborted), resident at most "
	       "%lu of %u pages; %s\n",
		model ? "model" : "KVM", seed, o.transport, lab.checks, writes, lab.mismatches,
		faults, interrupts, t.takeovers, t.fetching, t.out, t.saved, t.lost, t.page_ins,
		t.evictions, t.clean, t.aborted, lab.max_resident, BUDGET,
		lab.trouble[0] ? lab.trouble : "no trouble");
	ok = lab.mismatches == 0 && faults == 0 && writes && t.lost == 0 && t.takeovers &&
	     t.page_ins && t.clean && t.evictions > t.clean && (interrupts || model) &&
	     !vmm_trouble(&m) && lab.max_resident <= BUDGET + SMV_EVICT_BATCH && !lab.trouble[0];
	if (wrong)
		ok = lab.mismatches > 0;
	lab.versions = versions;
	vmm_destroy(&m);
	stub_lab_destroy(&lab);
	return ok ? 0 : 1;
}
