// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of shared page tables: what is to be computed without page tables.
 * Which mappings share, which addresses of whom a flush concerns, and which entry is
 * no table. The rest is tested from user space, by
 * tools/testing/selftests/mm/ptshare_test.c.
 */

#include <kunit/test.h>
#include <linux/file.h>
#include <linux/memfd_compat.h>
#include <linux/mm.h>
#include <linux/mount.h>
#include <linux/shmem_fs.h>

#include "internal.h"
#include "ptshare.h"

#define FLAGS	(VM_READ | VM_WRITE | VM_SHARED | VM_MAYSHARE | VM_MAYREAD | \
		 VM_MAYWRITE | VM_SOFTDIRTY)
#define START	(0x7f0000000000UL)
#define PAGES	(PMD_SIZE >> PAGE_SHIFT)

static struct vm_area_struct *make_vma(struct kunit *test, unsigned long start,
				       unsigned long tables, pgoff_t pgoff)
{
	struct vm_area_struct *vma;

	vma = kunit_kzalloc(test, sizeof(*vma), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vma);
	vma->vm_mm = &init_mm;
	vma->vm_start = start;
	vma->vm_end = start + tables * PMD_SIZE;
	vma->vm_pgoff = pgoff;
	return vma;
}

static void flags_that_share(struct kunit *test)
{
	KUNIT_EXPECT_TRUE(test, ptshare_may_share(FLAGS));
	KUNIT_EXPECT_TRUE(test, ptshare_may_share(FLAGS & ~VM_WRITE));
	/* A descriptor that is open for reading only. */
	KUNIT_EXPECT_TRUE(test, ptshare_may_share(VM_READ |
							    VM_MAYSHARE |
							    VM_MAYREAD));
	KUNIT_EXPECT_TRUE(test, ptshare_may_share(FLAGS |
							    VM_LOCKED |
							    VM_LOCKONFAULT |
							    VM_DONTCOPY |
							    VM_DONTDUMP |
							    VM_RAND_READ |
							    VM_SEQ_READ |
							    VM_NOHUGEPAGE |
							    VM_SEALED));
}

static void flags_that_do_not(struct kunit *test)
{
	static const unsigned long never[] = {
		VM_HUGEPAGE, VM_HUGETLB, VM_IO, VM_PFNMAP, VM_MIXEDMAP,
		VM_GROWSDOWN, VM_UFFD_MISSING, VM_UFFD_WP, VM_UFFD_MINOR,
		VM_EXEC, MEMFD_VM_UFFD_RWP, MEMFD_VM_MAYBE_GUARD,
	};

	for (int i = 0; i < ARRAY_SIZE(never); i++)
		if (never[i])
			KUNIT_EXPECT_FALSE_MSG(test,
					       ptshare_may_share(FLAGS |
								 never[i]),
					       "flags %lx", never[i]);
	KUNIT_EXPECT_FALSE(test, ptshare_may_share(FLAGS & ~VM_READ));
	KUNIT_EXPECT_FALSE(test, ptshare_may_share(FLAGS & ~VM_MAYSHARE));
#ifdef CONFIG_ARCH_HAS_PKEYS
	KUNIT_EXPECT_FALSE(test, ptshare_may_share(FLAGS | VM_PKEY_BIT0));
#endif
}

/*
 * What a VMA shares, and which of its pages the reverse mapping finds. In pages; the
 * VMA begins at START.
 */
static void shapes(struct kunit *test)
{
	const unsigned long span = PTSHARE_SPAN >> PAGE_SHIFT;
	const unsigned long far = (ULONG_MAX >> PAGE_SHIFT) & ~(PAGES - 1);
	struct {
		unsigned long from, to, pgoff;	/* the VMA */
		unsigned long start, end;	/* what it shares */
		unsigned long own_first, own_last;
	} cases[] = {
		/* Whole tables */
		{ 0, PAGES, 0, 0, PAGES, PAGES, -1 },
		{ 0, 2 * PAGES, PAGES, 0, 2 * PAGES, 3 * PAGES, PAGES - 1 },
		/* A part at the end, at the begin, at both */
		{ 0, PAGES + 1, 0, 0, PAGES, PAGES, PAGES },
		{ 1, 2 * PAGES, 1, PAGES, 2 * PAGES, 1, PAGES - 1 },
		{ 1, 3 * PAGES + 1, 1, PAGES, 3 * PAGES, 1, 3 * PAGES },
		/* No table as a whole */
		{ 0, PAGES - 1, 0, 0, 0, 0, PAGES - 2 },
		{ 1, PAGES + 1, 1, 0, 0, 1, PAGES },
		{ 1, 2 * PAGES - 1, 1, 0, 0, 1, 2 * PAGES - 2 },
		/* Not congruent */
		{ 0, 2 * PAGES, 1, 0, 0, 1, 2 * PAGES },
		{ 1, 2 * PAGES + 1, 0, 0, 0, 0, 2 * PAGES - 1 },
		/* The end of the host */
		{ 0, PAGES, span - PAGES, 0, PAGES, span, span - PAGES - 1 },
		{ 0, 2 * PAGES, span - PAGES, 0, PAGES, span, span + PAGES - 1 },
		{ 0, PAGES, span, 0, 0, span, span + PAGES - 1 },
		{ 0, PAGES, far, 0, 0, far, far + PAGES - 1 },
	};

	for (int i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vm_area_struct *vma = make_vma(test, START, 1,
						      cases[i].pgoff);
		struct ptshare_vma pv = { .vma = vma };

		vma->vm_start = START + (cases[i].from << PAGE_SHIFT);
		vma->vm_end = START + (cases[i].to << PAGE_SHIFT);
		ptshare_blocks(vma, &pv.start, &pv.end);
		KUNIT_EXPECT_EQ_MSG(test, cases[i].end - cases[i].start,
				    (pv.end - pv.start) >> PAGE_SHIFT,
				    "case %d", i);
		if (pv.start != pv.end)
			KUNIT_EXPECT_EQ_MSG(test, cases[i].start,
					    (pv.start - START) >> PAGE_SHIFT,
					    "case %d", i);
		if (!static_key_enabled(&ptshare_used))
			continue;
		vma->vm_ops = &ptshare_guest_vm_ops[0];
		vma->vm_private_data = &pv;
		KUNIT_EXPECT_EQ_MSG(test, cases[i].own_first,
				    ptshare_own_first(vma), "case %d", i);
		KUNIT_EXPECT_EQ_MSG(test, cases[i].own_last,
				    ptshare_own_last(vma), "case %d", i);
	}
}

static void classes(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, PTSHARE_RW, ptshare_class_of(FLAGS));
	KUNIT_EXPECT_EQ(test, PTSHARE_RO, ptshare_class_of(FLAGS & ~VM_WRITE));
	KUNIT_EXPECT_EQ(test, PTSHARE_RW + PTSHARE_LOCKED,
			ptshare_class_of(FLAGS | VM_LOCKED));
	KUNIT_EXPECT_EQ(test, PTSHARE_RO + PTSHARE_LOCKED,
			ptshare_class_of((FLAGS | VM_LOCKED) & ~VM_WRITE));
	KUNIT_EXPECT_LE(test, PTSHARE_BASE(PTSHARE_CLASSES), TASK_SIZE_MAX);
	for (int class = 0; class < PTSHARE_CLASSES; class++)
		KUNIT_EXPECT_TRUE(test, IS_ALIGNED(PTSHARE_BASE(class),
						   P4D_SIZE));
}

/* Addresses of the host, and which offsets are to be flushed. */
static void flushes_of_the_host(struct kunit *test)
{
	unsigned long ro = PTSHARE_BASE(PTSHARE_RO);
	unsigned long rw = PTSHARE_BASE(PTSHARE_RW);
	pgoff_t last_page = (PTSHARE_SPAN >> PAGE_SHIFT) - 1;
	struct {
		unsigned long start, end;
		pgoff_t first, last;
	} cases[] = {
		{ ro, ro + PAGE_SIZE, 0, 0 },
		{ rw, rw + PAGE_SIZE, 0, 0 },
		{ rw - PAGE_SIZE, rw, last_page, last_page },
		{ ro, rw, 0, last_page },
		{ rw + PMD_SIZE, rw + 2 * PMD_SIZE, PAGES, 2 * PAGES - 1 },
		{ rw, rw + PTSHARE_SPAN, 0, last_page },
		/* Both classes, or all: rather too much */
		{ rw - PAGE_SIZE, rw + PAGE_SIZE, 0, last_page },
		{ 0, ULONG_MAX, 0, last_page },
	};

	for (int i = 0; i < ARRAY_SIZE(cases); i++) {
		pgoff_t first, last;

		ptshare_host_range(cases[i].start, cases[i].end, &first, &last);
		KUNIT_EXPECT_EQ_MSG(test, cases[i].first, first, "case %d", i);
		KUNIT_EXPECT_EQ_MSG(test, cases[i].last, last, "case %d", i);
	}
}

/* The part of a range that a guest has, and where. */
static void flushes_of_a_guest(struct kunit *test)
{
	struct vm_area_struct *vma = make_vma(test, START, 2, PAGES);
	struct ptshare_vma guest = {
		.vma = vma, .start = START, .end = START + 2 * PMD_SIZE,
		.blocks = { .start = PAGES, .last = 3 * PAGES - 1 },
	};
	struct {
		pgoff_t first, last;
		unsigned long start, end;
	} cases[] = {
		{ 0, ULONG_MAX, 0, 2 * PMD_SIZE },
		{ PAGES, 3 * PAGES - 1, 0, 2 * PMD_SIZE },
		{ 0, PAGES, 0, PAGE_SIZE },
		{ PAGES + 3, PAGES + 3, 3 * PAGE_SIZE, 4 * PAGE_SIZE },
		{ 3 * PAGES - 1, 4 * PAGES, 2 * PMD_SIZE - PAGE_SIZE,
		  2 * PMD_SIZE },
	};

	for (int i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned long start, end;

		ptshare_guest_range(&guest, cases[i].first, cases[i].last,
				    &start, &end);
		KUNIT_EXPECT_EQ_MSG(test, START + cases[i].start, start,
				    "case %d", i);
		KUNIT_EXPECT_EQ_MSG(test, START + cases[i].end, end, "case %d",
				    i);
	}
	KUNIT_EXPECT_EQ(test, PMD_SIZE, ptshare_offset(vma, START));
	KUNIT_EXPECT_EQ(test, 2 * PMD_SIZE + 5,
			ptshare_offset(vma, START + PMD_SIZE + 5));
}

/* A table may lack the write bit, and nothing else. */
static void tables_that_are_sound(struct kunit *test)
{
	pmd_t table = __pmd(_KERNPG_TABLE | _PAGE_USER);
	pmd_t protected = __pmd(pmd_val(table) & ~_PAGE_RW);
	static const unsigned long missing[] = { _PAGE_PRESENT, _PAGE_DIRTY };
	static const unsigned long wrong[] = { _PAGE_PSE, _PAGE_PWT, _PAGE_GLOBAL, _PAGE_NX };

	KUNIT_EXPECT_FALSE(test, pmd_bad(table));
	KUNIT_EXPECT_FALSE(test, pmd_bad(protected));
	KUNIT_EXPECT_FALSE(test, pmd_bad(pmd_mkold(protected)));
	KUNIT_EXPECT_TRUE(test, pmd_bad(__pmd(0)));
	for (int i = 0; i < ARRAY_SIZE(missing); i++)
		KUNIT_EXPECT_TRUE_MSG(test, pmd_bad(__pmd(pmd_val(table) & ~missing[i])),
				      "missing %d", i);
	for (int i = 0; i < ARRAY_SIZE(wrong); i++)
		KUNIT_EXPECT_TRUE_MSG(test, pmd_bad(__pmd(pmd_val(table) | wrong[i])),
				      "wrong %d", i);
}

/* Drivers map their files in ways of their own; what is private is mapped by shmem alone */
static void files_of_the_kernel(struct kunit *test)
{
	struct vfsmount *mnt = ptshare_kernel_mount();
	struct file *private, *driver;
	struct shmem_sb_info *sbinfo;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, mnt);
	sbinfo = mnt->mnt_sb->s_fs_info;
	ptshare_enable();
	WRITE_ONCE(sbinfo->ptshare, PTSHARE_MOUNT_ALWAYS);
	private = shmem_kernel_file_setup("private", PMD_SIZE, MEMFD_NO_VMA_FLAGS);
	driver = shmem_file_setup("driver", PMD_SIZE, MEMFD_NO_VMA_FLAGS);
	WRITE_ONCE(sbinfo->ptshare, PTSHARE_MOUNT_NEVER);
	if (!IS_ERR(private)) {
		KUNIT_EXPECT_TRUE(test, ptshare_wanted(private));
		fput(private);
	}
	if (!IS_ERR(driver)) {
		KUNIT_EXPECT_FALSE(test, ptshare_wanted(driver));
		fput(driver);
	}
	KUNIT_EXPECT_NOT_ERR_OR_NULL(test, private);
	KUNIT_EXPECT_NOT_ERR_OR_NULL(test, driver);
}

static struct kunit_case ptshare_cases[] = {
	KUNIT_CASE(flags_that_share),
	KUNIT_CASE(flags_that_do_not),
	KUNIT_CASE(shapes),
	KUNIT_CASE(classes),
	KUNIT_CASE(flushes_of_the_host),
	KUNIT_CASE(flushes_of_a_guest),
	KUNIT_CASE(tables_that_are_sound),
	KUNIT_CASE(files_of_the_kernel),
	{}
};

static struct kunit_suite ptshare_suite = {
	.name = "ptshare",
	.test_cases = ptshare_cases,
};

kunit_test_suite(ptshare_suite);
