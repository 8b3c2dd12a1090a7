// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of memfd_protect(2) on the memory of a virtual machine. KVM has page tables of
 * its own for the machine, filled by GUP and emptied by the MMU notifiers of the
 * process: a page that the machine has written before it is protected is the case that
 * only these notifiers catch. What writes is a machine of two instructions; its code
 * lies in memory of its own.
 */
#include "memfd_protect_common.h"
#include "../mm/ptshare_common.h"

#include <linux/kvm.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	90

#define NR_PAGES	64

/* What the machine has of a mapping that is larger */
#define NR_TABLES	2

/* Physical addresses in the machine */
#define CODE_GPA	0x1000
#define MEMORY_GPA	0x200000

#define EXIT_PORT	0x10
#define RFLAGS_IF	0x200

/* movb %al, (%bx); out %al, $EXIT_PORT; jmp back */
static const unsigned char code_store[] = { 0x88, 0x07, 0xe6, EXIT_PORT, 0xeb, 0xfa };

/* 1: incl (%bx); jmp 1b: until a signal comes */
static const unsigned char code_count[] = { 0x66, 0xff, 0x07, 0xeb, 0xfb };

/* Where in the code page they are */
#define STORE_AT	0x000
#define COUNT_AT	0x100

FIXTURE(machine) {
	int fd;
	int nfd;
	int vm;
	int vcpu;
	struct kvm_run *run;
	size_t run_size;
	uint64_t rflags;
	char *code;
	char *map;
	size_t page;
	size_t size;
	size_t mapped;
};

FIXTURE_VARIANT(machine) {
	unsigned int flags;
	bool irqchip;
	size_t mapped;		/* bytes, 0: NR_PAGES */
};

FIXTURE_VARIANT_ADD(machine, plain) {
	.flags = 0, .irqchip = false,
};

/* With interrupts on, KVM lets a worker fault pages in: asynchronous page faults */
FIXTURE_VARIANT_ADD(machine, irqchip) {
	.flags = 0, .irqchip = true,
};

/* The process gets its MMU notifier when it maps the file already */
FIXTURE_VARIANT_ADD(machine, shared_tables) {
	.flags = MFD_SHARE_PGTABLES, .mapped = NR_TABLES * TABLE_SIZE,
};

FIXTURE_VARIANT_ADD(machine, shared_gib) {
	.flags = MFD_SHARE_PGTABLES, .mapped = 1UL << 30,
};

static int add_memory(int vm, unsigned int slot, uint64_t gpa, void *addr,
		      size_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = gpa, .memory_size = size,
		.userspace_addr = (uintptr_t)addr,
	};

	return neg_errno(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
}

/* Real mode, with a data segment that begins at that page of the file */
static bool set_registers(int vcpu, uint64_t ip, uint64_t ds, unsigned char al,
			  uint64_t rflags)
{
	struct kvm_regs regs = { .rip = ip, .rax = al, .rflags = rflags };
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return false;
	sregs.cs.base = CODE_GPA;
	sregs.cs.selector = CODE_GPA >> 4;
	sregs.ds.base = ds;
	return !ioctl(vcpu, KVM_SET_SREGS, &sregs) &&
	       !ioctl(vcpu, KVM_SET_REGS, &regs);
}

/* The machine's memory, from the beginning of the file */
static size_t memory_size(const FIXTURE_DATA(machine) *self)
{
	return self->mapped < NR_TABLES * TABLE_SIZE ? self->mapped :
						       NR_TABLES * TABLE_SIZE;
}

FIXTURE_SETUP(machine)
{
	struct kvm_enable_cap irqchip = {
		.cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 },
	};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		SKIP(return, "no /dev/kvm");
	self->page = page_size();
	self->size = NR_PAGES * self->page;
	self->fd = create_filled(NR_PAGES, MFD_ALLOW_PROTECT | variant->flags);
	if (self->fd < 0)
		SKIP(return, "no memfd with these flags");
	self->mapped = self->size;
	if (variant->mapped) {
		self->mapped = variant->mapped;
		ASSERT_EQ(0, ftruncate(self->fd, self->mapped));
	}
	self->map = mmap(NULL, self->mapped, PROT_READ | PROT_WRITE, MAP_SHARED,
			 self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->map);
	EXPECT_TRUE(filled_with(self->map, self->size, OLD_BYTE));
	self->nfd = sys_memfd_notify(self->fd, MEMFD_NOTIFY_KERNEL);
	ASSERT_LE(0, self->nfd);

	self->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	ASSERT_LE(0, self->vm);
	self->rflags = 2;	/* always set */
	if (variant->irqchip) {
		ASSERT_EQ(0, ioctl(self->vm, KVM_ENABLE_CAP, &irqchip));
		self->rflags |= RFLAGS_IF;
	}
	self->code = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->code);
	memcpy(self->code + STORE_AT, code_store, sizeof(code_store));
	memcpy(self->code + COUNT_AT, code_count, sizeof(code_count));
	ASSERT_EQ(0, add_memory(self->vm, 0, CODE_GPA, self->code, self->page));
	ASSERT_EQ(0, add_memory(self->vm, 1, MEMORY_GPA, self->map,
				memory_size(self)));
	self->vcpu = ioctl(self->vm, KVM_CREATE_VCPU, 0);
	ASSERT_LE(0, self->vcpu);
	self->run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	self->run = mmap(NULL, self->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 self->vcpu, 0);
	ASSERT_NE(MAP_FAILED, self->run);
	close(kvm);
	/* It has an MMU notifier now, and shares nevertheless */
	if (variant->flags & MFD_SHARE_PGTABLES) {
		ASSERT_TRUE(filled_with(self->map, self->size, OLD_BYTE));
		ASSERT_LT(0, shared_kb(self->map, self->mapped));
	}
}

FIXTURE_TEARDOWN(machine)
{
	munmap(self->run, self->run_size);
	close(self->vcpu);
	close(self->vm);
	munmap(self->code, self->page);
	munmap(self->map, self->mapped);
	close(self->nfd);
	close(self->fd);
}

/* What a thread lets the machine do */
struct job {
	const FIXTURE_DATA(machine) *self;
	uint64_t ip;
	size_t page;
	unsigned char byte;
	pthread_t thread;
	struct outcome out;
};

/* Returns 0 when the machine came to its exit, or -errno of KVM_RUN */
static long run_machine(void *arg)
{
	struct job *job = arg;
	int vcpu = job->self->vcpu;
	struct kvm_run *run = job->self->run;

	if (!set_registers(vcpu, job->ip,
			   MEMORY_GPA + job->page * job->self->page, job->byte,
			   job->self->rflags))
		return -EINVAL;
	if (ioctl(vcpu, KVM_RUN, 0))
		return -errno;
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != EXIT_PORT)
		return -run->exit_reason - 10000;
	return 0;
}

static void *run_thread(void *arg)
{
	struct job *job = arg;

	run_guarded(run_machine, job, &job->out);
	return NULL;
}

static void nothing(int sig)
{
}

static bool start(struct job *job)
{
	/* Not restarted: KVM_RUN returns EINTR */
	struct sigaction act = { .sa_handler = nothing };

	sigaction(SIGUSR1, &act, NULL);
	job->out.started = 0;
	job->out.done = 0;
	return !pthread_create(&job->thread, NULL, run_thread, job);
}

static bool finishes(struct job *job)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (!__atomic_load_n(&job->out.done, __ATOMIC_ACQUIRE)) {
		if (now_ns() > end)
			return false;
		usleep(500);
	}
	pthread_join(job->thread, NULL);
	return true;
}

static bool stop(struct job *job)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	/* One that comes before KVM_RUN is lost */
	while (!__atomic_load_n(&job->out.done, __ATOMIC_ACQUIRE)) {
		if (now_ns() > end)
			return false;
		pthread_kill(job->thread, SIGUSR1);
		usleep(1000);
	}
	pthread_join(job->thread, NULL);
	return true;
}

/* A store by the machine, from its start to its end */
static long store(struct job *job, size_t page, unsigned char byte)
{
	job->ip = STORE_AT;
	job->page = page;
	job->byte = byte;
	run_guarded(run_machine, job, &job->out);
	return job->out.ret;
}

static uint32_t counter(const FIXTURE_DATA(machine) *self, size_t page)
{
	uint32_t value;

	return pread(self->fd, &value, sizeof(value), page * self->page) ==
	       sizeof(value) ? value : 0;
}

static bool counts(const FIXTURE_DATA(machine) *self, size_t page)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	uint32_t before = counter(self, page);

	while (counter(self, page) == before) {
		if (now_ns() > end)
			return false;
		usleep(500);
	}
	return true;
}

TEST_F(machine, unprotected)
{
	struct job job = { .self = self };

	for (size_t i = 0; i < NR_PAGES; i++)
		ASSERT_EQ(0, store(&job, i, NEW_BYTE));
	for (size_t i = 0; i < NR_PAGES; i++) {
		EXPECT_EQ(NEW_BYTE, self->map[i * self->page]);
		EXPECT_EQ(OLD_BYTE, self->map[i * self->page + 1]);
	}
	EXPECT_TRUE(no_event(self->nfd));
}

/* Pages that the machine has written before, and one that it has not */
TEST_F(machine, deny)
{
	struct job job = { .self = self };

	for (size_t i = 0; i < NR_PAGES / 2; i++)
		ASSERT_EQ(0, store(&job, i, NEW_BYTE));
	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_DENY));
	for (size_t i = 0; i < NR_PAGES; i++) {
		EXPECT_EQ(-EFAULT, store(&job, i, 0x33));
		EXPECT_EQ(i < NR_PAGES / 2 ? NEW_BYTE : OLD_BYTE,
			  self->map[i * self->page]);
	}
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, NR_PAGES));
	EXPECT_EQ(0, store(&job, 3, 0x33));
	EXPECT_EQ(0x33, self->map[3 * self->page]);
}

TEST_F(machine, wait)
{
	struct job job = { .self = self, .ip = STORE_AT, .page = 5,
			   .byte = NEW_BYTE };
	struct memfd_event ev;

	for (size_t i = 0; i < NR_PAGES; i++)
		ASSERT_EQ(0, store(&job, i, OLD_BYTE));
	job.page = 5;
	job.byte = NEW_BYTE;
	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(start(&job));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_FAULT, ev.type);
	EXPECT_EQ(5 * self->page, ev.offset);
	EXPECT_EQ(getpid(), ev.pid);
	EXPECT_TRUE(ev.flags & MEMFD_EVENT_F_KERNEL);
	sleep_ms(SHORT_MS);
	EXPECT_FALSE(job.out.done);
	EXPECT_EQ(OLD_BYTE, self->map[5 * self->page]);

	/* Whoever reads does not wait */
	EXPECT_EQ(OLD_BYTE, self->map[6 * self->page]);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	ASSERT_TRUE(finishes(&job));
	EXPECT_EQ(0, job.out.ret);
	EXPECT_EQ(NEW_BYTE, self->map[5 * self->page]);
}

TEST_F(machine, wait_denied)
{
	struct job job = { .self = self, .ip = STORE_AT, .page = 5,
			   .byte = NEW_BYTE };
	struct memfd_event ev;

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(start(&job));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	ASSERT_TRUE(finishes(&job));
	EXPECT_EQ(-EFAULT, job.out.ret);
	EXPECT_EQ(OLD_BYTE, self->map[5 * self->page]);
}

/* A handler that may not stop the kernel: the machine's monitor gets an error */
TEST_F(machine, wait_without_the_right)
{
	struct job job = { .self = self, .ip = STORE_AT, .page = 5,
			   .byte = NEW_BYTE };
	struct memfd_event ev;

	close(self->nfd);
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(start(&job));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_TRUE(ev.flags & MEMFD_EVENT_F_KERNEL);
	EXPECT_FALSE(ev.flags & MEMFD_EVENT_F_WAITING);
	EXPECT_TRUE(finishes(&job));
	EXPECT_EQ(-EFAULT, job.out.ret);
	EXPECT_EQ(OLD_BYTE, self->map[5 * self->page]);
}

/* What a monitor does with its vCPU: run it again after each signal */
struct vcpu_loop {
	struct job job;
	volatile unsigned int interrupted;
	volatile unsigned int may_run;	/* as often as that */
};

static long run_again(void *arg)
{
	struct vcpu_loop *loop = arg;
	long ret;

	for (;;) {
		while (loop->interrupted >= loop->may_run)
			usleep(500);
		ret = loop->interrupted ? neg_errno(ioctl(loop->job.self->vcpu, KVM_RUN, 0)) :
					  run_machine(&loop->job);
		if (ret != -EINTR)
			return ret;
		loop->interrupted++;
	}
}

static void *loop_thread(void *arg)
{
	struct vcpu_loop *loop = arg;

	run_guarded(run_again, loop, &loop->job.out);
	return NULL;
}

static bool loop_start(struct vcpu_loop *loop)
{
	struct sigaction act = { .sa_handler = nothing };

	sigaction(SIGUSR1, &act, NULL);
	return !pthread_create(&loop->job.thread, NULL, loop_thread, loop);
}

static bool interrupt(struct vcpu_loop *loop)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	unsigned int before = loop->interrupted;

	pthread_kill(loop->job.thread, SIGUSR1);
	while (loop->interrupted == before) {
		if (now_ns() > end || loop->job.out.done)
			return false;
		usleep(500);
	}
	return true;
}

/* A machine that waits is stopped as always: by a signal to its thread */
TEST_F(machine, wait_is_interrupted)
{
	struct vcpu_loop loop = {
		.job = { .self = self, .ip = STORE_AT, .page = 5, .byte = NEW_BYTE },
		.may_run = 100,
	};
	struct memfd_event ev;

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(loop_start(&loop));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	for (unsigned int round = 0; round < 20; round++) {
		/* Wherever it is */
		usleep(round * 1000);
		ASSERT_TRUE(interrupt(&loop)) TH_LOG("round %u", round);
	}
	EXPECT_TRUE(task_sleeps(getpid(), loop.job.out.tid));
	EXPECT_EQ(OLD_BYTE, self->map[5 * self->page]);

	/* It is the same event still */
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	ASSERT_TRUE(finishes(&loop.job));
	EXPECT_EQ(0, loop.job.out.ret);
	EXPECT_EQ(NEW_BYTE, self->map[5 * self->page]);
}

/* The answer comes while the machine stands */
TEST_F(machine, denied_meanwhile)
{
	struct vcpu_loop loop = {
		.job = { .self = self, .ip = STORE_AT, .page = 5, .byte = NEW_BYTE },
		.may_run = 1,
	};
	struct memfd_event ev;

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(loop_start(&loop));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_TRUE(interrupt(&loop));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	loop.may_run = 2;
	ASSERT_TRUE(finishes(&loop.job));
	EXPECT_EQ(-EFAULT, loop.job.out.ret);
	EXPECT_EQ(OLD_BYTE, self->map[5 * self->page]);
}

/* The answer comes together with a signal: nobody is asked twice */
TEST_F(machine, denied_and_interrupted)
{
	struct memfd_event ev, again;

	for (unsigned int round = 0; round < 20; round++) {
		struct vcpu_loop loop = {
			.job = { .self = self, .ip = STORE_AT, .page = round,
				 .byte = NEW_BYTE },
			.may_run = 100,
		};

		ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
		ASSERT_TRUE(loop_start(&loop));
		ASSERT_TRUE(read_event(self->nfd, &ev));
		EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
		pthread_kill(loop.job.thread, SIGUSR1);
		ASSERT_TRUE(finishes(&loop.job)) TH_LOG("round %u", round);
		EXPECT_EQ(-EFAULT, loop.job.out.ret);
		/* 6.12 looks for poison then, and that is reported */
		while (readable(self->nfd, 0) && read_event(self->nfd, &again))
			EXPECT_FALSE(again.flags & MEMFD_EVENT_F_WAITING);
	}
}

TEST_F(machine, async)
{
	struct memfd_range ranges[NR_PAGES];
	struct job job = { .self = self };

	for (size_t i = 0; i < NR_PAGES; i++)
		ASSERT_EQ(0, store(&job, i, NEW_BYTE));
	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	for (unsigned char round = 0; round < 3; round++) {
		ASSERT_EQ(0, store(&job, 3, round));
		ASSERT_EQ(0, store(&job, 4, round));
		ASSERT_EQ(0, store(&job, 20 + round, round));
		ASSERT_EQ(2, scan_range(self->nfd, 0, 0, ranges, NR_PAGES,
					MEMFD_SCAN_REPROTECT, NULL));
		EXPECT_EQ(3 * self->page, ranges[0].offset);
		EXPECT_EQ(2 * self->page, ranges[0].length);
		EXPECT_EQ((20 + round) * self->page, ranges[1].offset);
		EXPECT_EQ(self->page, ranges[1].length);
	}
}

/* What the machine writes at that moment stands still when memfd_protect() returns */
TEST_F(machine, running)
{
	static const unsigned int modes[] = {
		MEMFD_PROTECT_WAIT, MEMFD_PROTECT_DENY,
	};
	struct job job = { .self = self, .ip = COUNT_AT, .page = 9 };
	uint32_t seen;

	ASSERT_TRUE(start(&job));
	for (unsigned int round = 0; round < 60; round++) {
		ASSERT_TRUE(counts(self, 9)) TH_LOG("round %u", round);
		ASSERT_EQ(0, protect_pages(self->fd, 9, 1, modes[round % 2]));
		seen = counter(self, 9);
		usleep(round * 50);
		ASSERT_EQ(seen, counter(self, 9)) TH_LOG("round %u", round);
		ASSERT_EQ(0, unprotect_pages(self->fd, 9, 1));
		if (modes[round % 2] == MEMFD_PROTECT_DENY) {
			/* It may have met the protection, and is over then */
			ASSERT_TRUE(stop(&job));
			ASSERT_TRUE(start(&job));
		}
		drain_events(self->nfd);
	}
	ASSERT_TRUE(stop(&job));
}

/*
 * A huge page, which KVM maps by an entry as large, too. When it is told that one page is
 * protected that goes; if the machine uses another page before the process's own entry
 * has gone, it comes back. It must not outlive that.
 */
#define HUGE_GPA	0x40000000
#define HUGE_SIZE	0x200000UL

static long huge_entries(void)
{
	char text[32] = "";
	FILE *sum = popen("cat /sys/kernel/debug/kvm/*/pages_2m 2>/dev/null | sort -n | tail -n 1",
			  "r");

	if (sum && !fgets(text, sizeof(text), sum))
		text[0] = 0;
	if (sum)
		pclose(sum);
	return atol(text);
}

/*
 * Returns whether a store of the machine to a protected page went through. Page @first of
 * the machine's memory is the first one of the file.
 */
static bool huge_play(struct job *job, int fd, size_t first, size_t page)
{
	bool through;

	job->ip = COUNT_AT;
	job->page = first + page + 100;
	if (!start(job))
		return false;
	usleep(20000);
	if (protect_pages(fd, 0, page + 1, MEMFD_PROTECT_DENY))
		return false;
	stop(job);
	through = !store(job, first + page, 0x33);
	unprotect_pages(fd, 0, 0);
	return through;
}

TEST_F(machine, huge_page)
{
	size_t page = 50, first = (HUGE_GPA - MEMORY_GPA) / self->page;
	struct job job = { .self = self };
	unsigned int through = 0;
	char before[64], *map;
	int fd;

	if (!set_shmem_huge("always", before, sizeof(before)))
		SKIP(return, "no huge pages of shmem");
	fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_EQ(0, ftruncate(fd, HUGE_SIZE));
	map = mmap(NULL, 2 * HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map = (char *)(((uintptr_t)map + HUGE_SIZE - 1) & -HUGE_SIZE);
	map = mmap(map, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	memset(map, OLD_BYTE, HUGE_SIZE);
	set_shmem_huge(before, NULL, 0);
	ASSERT_EQ(0, add_memory(self->vm, 2, HUGE_GPA, map, HUGE_SIZE));
	ASSERT_EQ(0, store(&job, first, NEW_BYTE));
	if (!huge_entries())
		SKIP(return, "no huge pages in the machine");
	EXPECT_TRUE(debug_set("delay_us", "split", 20000));

	for (unsigned int i = 0; i < 10; i++) {
		/* The entries of the process and of KVM are huge again */
		memset(map, OLD_BYTE, HUGE_SIZE);
		EXPECT_EQ(0, store(&job, first + page, NEW_BYTE));
		through += huge_play(&job, fd, first, page);
	}
	EXPECT_EQ(0, through);
	EXPECT_TRUE(debug_set("disable", "told", 1));
	for (unsigned int i = 0; i < 100 && !through; i++) {
		memset(map, OLD_BYTE, HUGE_SIZE);
		EXPECT_EQ(0, store(&job, first + page, NEW_BYTE));
		through += huge_play(&job, fd, first, page);
	}
	EXPECT_NE(0, through);
	debug_set("disable", "told", 0);
	debug_set("delay_us", "split", 0);
	close(fd);
}

/* Every write is in this scan or in the next: the copy ends up the same */
TEST_F(machine, incremental)
{
	struct job job = { .self = self, .ip = COUNT_AT };
	struct memfd_range range[NR_PAGES];
	char copy[self->size];

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	ASSERT_EQ(self->size, pread(self->fd, copy, self->size, 0));
	for (unsigned int round = 0; round < 50; round++) {
		int nr;

		job.page = round * 7 % NR_PAGES;
		ASSERT_TRUE(start(&job));
		ASSERT_TRUE(counts(self, job.page));
		for (unsigned int scans = 0; scans < 3; scans++) {
			/* The last one when the machine stands */
			if (scans == 2)
				ASSERT_TRUE(stop(&job));
			nr = scan_range(self->nfd, 0, 0, range, NR_PAGES,
					MEMFD_SCAN_REPROTECT, NULL);
			ASSERT_LE(0, nr);
			for (int i = 0; i < nr; i++)
				ASSERT_EQ(range[i].length,
					  pread(self->fd, copy + range[i].offset,
						range[i].length, range[i].offset));
			if (scans < 2)
				usleep(round * 20);
		}
		ASSERT_EQ(0, memcmp(copy, self->map, self->size)) TH_LOG("round %u", round);
	}
}

/* The worker of an asynchronous page fault can but fail, over and over again */
TEST_F(machine, worker_would_fail)
{
	struct job job = { .self = self, .ip = STORE_AT, .page = 5 };
	struct memfd_event ev;

	if (!variant->irqchip)
		SKIP(return, "no asynchronous page faults");
	if (!debug_set("disable", "async_pf", 1))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	close(self->nfd);
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(start(&job));
	for (unsigned int i = 0; i < 10; i++)
		ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_FALSE(job.out.done);
	debug_set("disable", "async_pf", 0);
	ASSERT_TRUE(finishes(&job));
	EXPECT_EQ(-EFAULT, job.out.ret);
}

/* Memory that was swapped out while it was protected */
TEST_F(machine, swapped)
{
	struct job job = { .self = self };
	long kb = 0;

	for (size_t i = 0; i < NR_PAGES; i++)
		ASSERT_EQ(0, store(&job, i, NEW_BYTE));
	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_DENY));
	/* Some are not on the list of reclaim yet */
	for (unsigned int i = 0; i < 200; i++) {
		ASSERT_EQ(0, madvise(self->map, self->size, MADV_PAGEOUT));
		kb = swapped_kb(self->fd, 0, NR_PAGES);
		if (kb == self->size / 1024)
			break;
		usleep(5000);
	}
	if (kb < self->size / 1024)
		SKIP(return, "only %ld kB are swapped out", kb);
	for (size_t i = 0; i < NR_PAGES; i++) {
		EXPECT_EQ(-EFAULT, store(&job, i, 0x33));
		EXPECT_EQ(NEW_BYTE, self->map[i * self->page]);
	}
}

/* All of the file at once, which takes write access from whole tables */
TEST_F(machine, whole_file)
{
	size_t pages = memory_size(self) / self->page;
	size_t last = self->mapped / self->page;
	struct job job = { .self = self };

	for (unsigned int round = 0; round < 10; round++) {
		for (size_t i = 0; i < pages; i += pages / 8)
			ASSERT_EQ(0, store(&job, i, NEW_BYTE + round));
		ASSERT_EQ(0, protect_pages(self->fd, 0, last, MEMFD_PROTECT_DENY));
		for (size_t i = 0; i < pages; i += pages / 8) {
			EXPECT_EQ(-EFAULT, store(&job, i, 0x33));
			EXPECT_EQ(NEW_BYTE + round, self->map[i * self->page]);
		}
		ASSERT_EQ(0, unprotect_pages(self->fd, 0, last));
	}
	if (variant->flags & MFD_SHARE_PGTABLES)
		EXPECT_LT(0, shared_kb(self->map, self->mapped));
}

/* Another process shares tables of the file with the one that has the machine */
TEST_F(machine, beside_others)
{
	struct job job = { .self = self };
	int status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		char *map = mmap(NULL, self->mapped, PROT_READ | PROT_WRITE,
				 MAP_SHARED, self->fd, 0);

		if (map == MAP_FAILED)
			_exit(1);
		for (size_t i = 0; i < NR_PAGES; i++)
			map[i * self->page + 1] = 0x44;
		if ((variant->flags & MFD_SHARE_PGTABLES) &&
		    !shared_kb(map, self->mapped))
			_exit(2);
		_exit(map[0] != OLD_BYTE);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	for (size_t i = 0; i < NR_PAGES; i++) {
		ASSERT_EQ(0, store(&job, i, NEW_BYTE));
		EXPECT_EQ(NEW_BYTE, self->map[i * self->page]);
		EXPECT_EQ(0x44, self->map[i * self->page + 1]);
	}
}

/* One machine lives as long as the program: the kernel's code is patched for the first */
int main(int argc, char **argv)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int ret;

	need_memfd_protect();
	ioctl(kvm, KVM_CREATE_VM, 0);
	debug_set("disable", "async_pf", 0);
	ret = test_harness_run(argc, argv);
	debug_set("disable", "async_pf", 0);
	return ret;
}
