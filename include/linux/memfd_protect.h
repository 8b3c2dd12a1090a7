/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Write protection of memfds: what core kernel code calls.
 *
 * See Documentation/mm/memfd_protect.rst for the list of places and why each
 * is one.
 */
#ifndef _LINUX_MEMFD_PROTECT_H
#define _LINUX_MEMFD_PROTECT_H

#include <linux/jump_label.h>
#include <linux/mm.h>
#include <linux/ptshare.h>
#include <uapi/linux/memfd.h>
#include <uapi/linux/memfd_protect.h>

struct folio;
struct iov_iter;
struct kiocb;
struct memfd_protect;
struct pipe_inode_info;
struct seq_file;

/**
 * memfd_protect_flags_valid() - whether memfd_create() can do it
 * @flags: MFD_*.
 *
 * Return: False if MFD_ALLOW_PROTECT is set and not possible.
 */
static inline bool memfd_protect_flags_valid(unsigned int flags)
{
	if (!(flags & MFD_ALLOW_PROTECT))
		return true;
	return IS_ENABLED(CONFIG_MEMFD_PROTECT) && !(flags & MFD_HUGETLB);
}

#ifdef CONFIG_MEMFD_PROTECT

DECLARE_STATIC_KEY_FALSE(memfd_protect_used);
extern const struct vm_operations_struct memfd_protect_vm_ops;

/**
 * vma_memfd_protect() - whether a VMA maps a memfd with MFD_ALLOW_PROTECT
 * @vma: The VMA.
 *
 * Context: Any in which @vma may be looked at.
 * Return: True if so. Costs nothing until the first such memfd is made.
 */
static inline bool vma_memfd_protect(const struct vm_area_struct *vma)
{
	return static_branch_unlikely(&memfd_protect_used) &&
	       ptshare_vm_ops(vma) == &memfd_protect_vm_ops;
}

bool __memfd_protect_end(const struct vm_area_struct *vma, struct folio *folio);
bool __memfd_protect_no_batch(void);
bool __memfd_protect_no_userfault(void);
bool __memfd_protect_no_fill(void);

/* mm/memfd_huge.c */

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
bool __memfd_protect_no_pmd(struct vm_area_struct *vma, unsigned long addr);
vm_fault_t __memfd_protect_wp_pmd(struct vm_fault *vmf);
void __memfd_protect_zapped_pmd(struct mmu_gather *tlb);
void __memfd_protect_collapse_begin(struct mm_struct *mm);
void __memfd_protect_collapse_end(struct mm_struct *mm);
#else
static inline bool __memfd_protect_no_pmd(struct vm_area_struct *vma,
					  unsigned long addr)
{
	return true;
}

static inline vm_fault_t __memfd_protect_wp_pmd(struct vm_fault *vmf)
{
	return VM_FAULT_FALLBACK;
}

static inline void __memfd_protect_zapped_pmd(struct mmu_gather *tlb) { }
static inline void __memfd_protect_collapse_begin(struct mm_struct *mm) { }
static inline void __memfd_protect_collapse_end(struct mm_struct *mm) { }
#endif

/**
 * memfd_protect_no_pmd() - whether there must not be a huge entry
 * @vma: The VMA.
 * @addr: The first address that the entry would map.
 *
 * Pages are protected one by one, and nothing is stored behind the end of the file.
 *
 * Context: The lock of the PMD table; without it, what is true may be false by now.
 * Return: True if so.
 */
static inline bool memfd_protect_no_pmd(struct vm_area_struct *vma,
					unsigned long addr)
{
	return vma_memfd_protect(vma) && __memfd_protect_no_pmd(vma, addr);
}

/**
 * memfd_protect_pmd() - a huge entry is about to be set
 * @vma: The VMA.
 * @addr: Its first address.
 * @pmd: The entry.
 *
 * Context: The lock of the PMD table.
 * Return: @pmd, without write access if a page of it is protected.
 */
static inline pmd_t memfd_protect_pmd(struct vm_area_struct *vma,
				      unsigned long addr, pmd_t pmd)
{
	return memfd_protect_no_pmd(vma, addr) ? pmd_wrprotect(pmd) : pmd;
}

/**
 * memfd_protect_wp_pmd() - write fault on a huge entry without write access
 * @vmf: The fault. Its VMA is shared.
 *
 * Context: Sleeps. The lock of the VMA, released if the result has VM_FAULT_RETRY.
 * Return: VM_FAULT_*. VM_FAULT_FALLBACK if a page table is to take its place, unless there
 * is one already.
 */
static inline vm_fault_t memfd_protect_wp_pmd(struct vm_fault *vmf)
{
	return vma_memfd_protect(vmf->vma) ? __memfd_protect_wp_pmd(vmf) :
					     VM_FAULT_FALLBACK;
}

/**
 * memfd_protect_zapped_pmd() - a huge entry has been cleared, and is flushed later
 * @tlb: By whom.
 * @vma: The VMA.
 * @pmd: What it was.
 *
 * The VMA may leave the reverse mapping before that. If somebody can still write through
 * the entry, it is flushed now. Without the dirty bit nobody can. Meanwhile who finds
 * the VMA, and the entry gone, flushes too: @tlb is counted as pending.
 *
 * Context: The VMA is in the reverse mapping.
 */
static inline void memfd_protect_zapped_pmd(struct mmu_gather *tlb,
					    const struct vm_area_struct *vma,
					    pmd_t pmd)
{
	if (vma_memfd_protect(vma) && pmd_dirty(pmd))
		__memfd_protect_zapped_pmd(tlb);
}

/**
 * memfd_protect_collapse_begin() - small entries are about to be cleared
 * @vma: The VMA.
 *
 * memfd_protect() is told that they are not flushed under their lock.
 *
 * Context: mmap lock.
 */
static inline void memfd_protect_collapse_begin(struct vm_area_struct *vma)
{
	if (vma_memfd_protect(vma))
		__memfd_protect_collapse_begin(vma->vm_mm);
}

/**
 * memfd_protect_collapse_end() - they have been flushed
 * @vma: The VMA.
 *
 * Context: mmap lock, since memfd_protect_collapse_begin().
 */
static inline void memfd_protect_collapse_end(struct vm_area_struct *vma)
{
	if (vma_memfd_protect(vma))
		__memfd_protect_collapse_end(vma->vm_mm);
}

/* mm/memfd_fault.c */

/**
 * memfd_protect_entries() - take write access away from protected pages of a table
 * @vma: A VMA of a memfd with MFD_ALLOW_PROTECT.
 * @addr: First address that the table maps.
 * @pte: Its entries.
 *
 * Context: The table's lock. No TLB has anything of it that can be written through.
 */
void memfd_protect_entries(struct vm_area_struct *vma, unsigned long addr,
			   pte_t *pte);

/**
 * memfd_protect_end() - whether not all of a folio is to be mapped
 * @vma: A VMA that maps a file.
 * @folio: A folio of the file.
 *
 * Where a file ends in a large folio, shmem lets processes map all of that, and store behind
 * the end.
 *
 * Context: Any in which @vma may be looked at.
 * Return: True if @vma maps a memfd with MFD_ALLOW_PROTECT, which ends in @folio.
 */
static inline bool memfd_protect_end(const struct vm_area_struct *vma,
				     struct folio *folio)
{
	return vma_memfd_protect(vma) && __memfd_protect_end(vma, folio);
}

/**
 * memfd_protect_no_batch() - whether entries of a VMA must be copied one by one
 * @vma: The VMA.
 *
 * fork() gives all entries of a batch the same rights: the write bit, if one of
 * them has it.
 *
 * Context: Any in which @vma may be looked at.
 * Return: True if @vma maps a memfd with MFD_ALLOW_PROTECT.
 */
static inline bool memfd_protect_no_batch(const struct vm_area_struct *vma)
{
	return vma_memfd_protect(vma) && __memfd_protect_no_batch();
}

/**
 * memfd_protect_no_userfault() - whether userfaultfd must leave a VMA alone
 * @vma: The VMA.
 *
 * It fills pages of the file without asking, in reply to whoever registered.
 *
 * Return: True if so.
 */
static inline bool memfd_protect_no_userfault(const struct vm_area_struct *vma)
{
	return vma_memfd_protect(vma) && __memfd_protect_no_userfault();
}

/**
 * memfd_protect_no_fill() - whether userfaultfd must not fill pages
 * @vma: A VMA that is registered: asynchronous write protection is for all.
 *
 * It would fill a hole, or map a page as writable, without a fault that asks.
 *
 * Return: True if so.
 */
static inline bool memfd_protect_no_fill(const struct vm_area_struct *vma)
{
	return vma_memfd_protect(vma) && __memfd_protect_no_fill();
}

int memfd_protect_create(struct file *file);
void memfd_protect_evict(struct inode *inode);
bool memfd_protected(struct inode *inode);
const struct vm_operations_struct *
memfd_protect_mmap(struct inode *inode, bool shared,
		   const struct vm_operations_struct *ops);
bool memfd_protect_may_wrap(struct inode *inode, const struct vm_area_struct *vma);
void memfd_protect_open(struct inode *inode, struct file *file);
void memfd_protect_show_fdinfo(struct seq_file *m, struct file *file);
unsigned int memfd_protect_seals(struct file *file);
void memfd_protect_sealed(struct file *file);

vm_fault_t __memfd_protect_fault(struct vm_fault *vmf);
bool __memfd_protect_logs(struct vm_area_struct *vma, unsigned long addr);
bool __memfd_protect_may_wait(struct mm_struct *mm, unsigned long addr);
bool __memfd_protect_at(unsigned long addr);
vm_fault_t __memfd_protect_wp_fault(struct vm_fault *vmf);
void __memfd_protect_set_ptes(struct vm_area_struct *vma, unsigned long addr,
			      pte_t *ptep, pte_t pte, unsigned int nr);
bool __memfd_protect_pte(struct vm_area_struct *vma, unsigned long addr);
int __memfd_protect_write(struct kiocb *iocb, struct iov_iter *from);
int __memfd_protect_punch(struct inode *inode, loff_t offset, loff_t len);
int __memfd_protect_truncate(struct inode *inode, loff_t size);
int __memfd_protect_grow(struct inode *inode, loff_t size);
int __memfd_protect_splice_file(struct file *in, loff_t in_pos,
				struct file *out, loff_t out_pos, size_t *len);
int __memfd_protect_splice_pipe(struct pipe_inode_info *pipe, struct file *out,
				loff_t pos, size_t *len);
void __memfd_protect_splice_nowait(struct kiocb *iocb, bool waited);
int memfd_protect_splice_wait(struct file *out, loff_t pos, size_t len);
int __memfd_protect_read(struct kiocb *iocb, pgoff_t index);
bool __memfd_protect_access_begin(struct vm_area_struct *vma,
				  unsigned long addr, struct page *page);
void __memfd_protect_access_end(struct page *page);
int __memfd_protect_got_pages(struct page **pages, int nr);
int __memfd_protect_pin_begin(struct file *file, loff_t start, loff_t end);
bool __memfd_protect_pin_end(struct file *file, struct folio **folios,
			     unsigned int nr, loff_t start, loff_t end);
void __memfd_protect_pinned(struct folio *folio);

/**
 * memfd_protect_fault() - a write fault asks before it gets its page
 * @vmf: A write fault in a shared mapping, nothing but the mmap or VMA lock
 *	 held.
 *
 * Context: May sleep, then with the mmap or VMA lock released.
 * Return: 0 to go on. Otherwise what the fault is to return.
 */
static inline vm_fault_t memfd_protect_fault(struct vm_fault *vmf)
{
	return vma_memfd_protect(vmf->vma) ? __memfd_protect_fault(vmf) : 0;
}

/**
 * memfd_protect_logs() - whether a store is logged at once, as it seems
 * @vma: A shared mapping.
 * @addr: Where the store is.
 *
 * Context: The mmap or VMA lock.
 * Return: True if so. It may be otherwise by now.
 */
static inline bool memfd_protect_logs(struct vm_area_struct *vma,
				      unsigned long addr)
{
	return vma_memfd_protect(vma) && __memfd_protect_logs(vma, addr);
}

/**
 * memfd_protect_may_wait() - whether a fault is to be one that may wait
 * @mm: Address space of the current task.
 * @addr: Where it is going to write.
 *
 * For those who do without FAULT_FLAG_ALLOW_RETRY as a rule. A fault that has it
 * fails for a task that is being killed, so that task does without.
 *
 * Context: mmap lock.
 * Return: True if so.
 */
static inline bool memfd_protect_may_wait(struct mm_struct *mm,
					  unsigned long addr)
{
	return static_branch_unlikely(&memfd_protect_used) &&
	       __memfd_protect_may_wait(mm, addr);
}

/**
 * memfd_protect_at() - whether a write of the current process is going to be stopped
 * @addr: Where.
 *
 * For KVM, which would have a kernel thread fault the page in. That could not wait for
 * a handler, and what it fails with is told to nobody.
 *
 * Context: Sleeps. No mmap lock.
 * Return: True if a protected page of a memfd is mapped there.
 */
static inline bool memfd_protect_at(unsigned long addr)
{
	return static_branch_unlikely(&memfd_protect_used) &&
	       __memfd_protect_at(addr);
}

/**
 * memfd_protect_wp_fault() - a write fault asks before it makes its entry writable
 * @vmf: A write fault in a shared mapping, &vm_fault.ptl held.
 *
 * Context: May sleep, then with all locks released.
 * Return: 0 to go on, the page table lock still (or again) held. Otherwise what
 * the fault is to return, with the page table unlocked and unmapped.
 */
static inline vm_fault_t memfd_protect_wp_fault(struct vm_fault *vmf)
{
	return vma_memfd_protect(vmf->vma) ? __memfd_protect_wp_fault(vmf) : 0;
}

/**
 * memfd_protect_set_ptes() - set_ptes() that leaves protected pages read-only
 * @vma: The VMA.
 * @addr: Address of the first page.
 * @ptep: Its entry.
 * @pte: What to set it to.
 * @nr: Number of pages, with consecutive frames.
 *
 * Context: Page table lock.
 */
static inline void memfd_protect_set_ptes(struct vm_area_struct *vma,
					  unsigned long addr, pte_t *ptep,
					  pte_t pte, unsigned int nr)
{
	if (vma_memfd_protect(vma))
		__memfd_protect_set_ptes(vma, addr, ptep, pte, nr);
	else
		set_ptes(vma->vm_mm, addr, ptep, pte, nr);
}

/**
 * memfd_protect_pte() - the entry without write access if the page is protected
 * @vma: The VMA.
 * @addr: The page's address.
 * @pte: The entry that the caller is going to set.
 *
 * Context: Page table lock.
 * Return: The entry to set.
 */
static inline pte_t memfd_protect_pte(struct vm_area_struct *vma,
				      unsigned long addr, pte_t pte)
{
	if (vma_memfd_protect(vma) && pte_write(pte) &&
	    __memfd_protect_pte(vma, addr))
		return pte_wrprotect(pte);
	return pte;
}

/**
 * memfd_protect_write() - write(2) and its kin ask before they write
 * @iocb: Where to write; passed generic_write_checks().
 * @from: What to write.
 *
 * Context: inode_lock(), which is released while it sleeps. The checks are
 * made anew then.
 * Return: 0 to go on, or what the system call is to return.
 */
static inline int memfd_protect_write(struct kiocb *iocb, struct iov_iter *from)
{
	return static_branch_unlikely(&memfd_protect_used) ?
	       __memfd_protect_write(iocb, from) : 0;
}

/**
 * memfd_protect_punch() - hole punching asks before it changes anything
 * @inode: A shmem inode.
 * @offset: Where the hole begins, in bytes.
 * @len: Its length in bytes.
 *
 * Context: inode_lock(), which is released while it sleeps.
 * Return: 0 to go on, or a negative error.
 */
static inline int memfd_protect_punch(struct inode *inode, loff_t offset,
				      loff_t len)
{
	return static_branch_unlikely(&memfd_protect_used) ?
	       __memfd_protect_punch(inode, offset, len) : 0;
}

/**
 * memfd_protect_truncate() - truncation asks before it changes anything
 * @inode: Any inode.
 * @size: Its new size in bytes.
 *
 * Context: inode_lock(), which is released while it sleeps.
 * Return: 0 to go on, or a negative error.
 */
static inline int memfd_protect_truncate(struct inode *inode, loff_t size)
{
	return static_branch_unlikely(&memfd_protect_used) ?
	       __memfd_protect_truncate(inode, size) : 0;
}

/**
 * memfd_protect_grow() - nothing is in a file after it has grown that was not asked for
 * @inode: A shmem inode.
 * @size: Its new size in bytes; a smaller one changes nothing.
 *
 * Where a file ends in a large folio, the rest of that is cleared.
 *
 * Context: May sleep. inode_lock(); the old size is still there.
 * Return: 0, -ENOMEM, or what reading from swap has returned.
 */
static inline int memfd_protect_grow(struct inode *inode, loff_t size)
{
	return static_branch_unlikely(&memfd_protect_used) ?
	       __memfd_protect_grow(inode, size) : 0;
}

/**
 * memfd_protect_splice_file() - sendfile() and copy_file_range() ask once for all
 * @in: Where the data comes from.
 * @in_pos: From where on, in bytes.
 * @out: Where it goes.
 * @out_pos: Where to, in bytes.
 * @len: How much at most, in bytes. Is made less if @in has no size, and there is
 *	 a protected page in the way.
 *
 * Context: May sleep; no locks.
 * Return: 0 to go on, or a negative error.
 */
static inline int memfd_protect_splice_file(struct file *in, loff_t in_pos,
					    struct file *out, loff_t out_pos,
					    size_t *len)
{
	return static_branch_unlikely(&memfd_protect_used) ?
	       __memfd_protect_splice_file(in, in_pos, out, out_pos, len) : 0;
}

/**
 * memfd_protect_splice_pipe() - splice() from a pipe asks once for all
 * @pipe: Where the data comes from.
 * @out: Where it goes.
 * @pos: Where to, in bytes.
 * @len: How much at most, in bytes. Is made less if that is not in the pipe yet,
 *	 and there is a protected page in the way.
 *
 * Context: May sleep; no locks, the pipe's neither.
 * Return: 0 to go on, or a negative error.
 */
static inline int memfd_protect_splice_pipe(struct pipe_inode_info *pipe,
					    struct file *out, loff_t pos,
					    size_t *len)
{
	return static_branch_unlikely(&memfd_protect_used) ?
	       __memfd_protect_splice_pipe(pipe, out, pos, len) : 0;
}

/*
 * A write that is not to wait for protected pages, but for locks like any other. The
 * flag is for reads; nothing looks at it that writes to shmem.
 */
#define IOCB_MEMFD_NOWAIT	IOCB_NOIO

/**
 * memfd_protect_splice_nowait() - a piece is written with the pipe locked
 * @iocb: How it is going to be written.
 * @waited: Whether memfd_protect_splice_wait() has waited for this piece.
 *
 * Whoever else uses the pipe is not to wait for what its writer waits for. So that
 * one gets -EAGAIN instead, and must wait by memfd_protect_splice_wait(). That is for
 * protected pages, and for inode_lock(), but for the latter once only: of several that
 * try it again and again, and hold it in between, none might ever get on.
 */
static inline void memfd_protect_splice_nowait(struct kiocb *iocb, bool waited)
{
	if (static_branch_unlikely(&memfd_protect_used))
		__memfd_protect_splice_nowait(iocb, waited);
}

/**
 * memfd_protect_read() - whether read(2) can have a page at once
 * @iocb: How it reads, of a shmem file.
 * @index: The page offset.
 *
 * Only files with MFD_ALLOW_PROTECT are ever read with IOCB_NOWAIT.
 *
 * Return: 0 or -EAGAIN.
 */
static inline int memfd_protect_read(struct kiocb *iocb, pgoff_t index)
{
	return iocb->ki_flags & IOCB_NOWAIT ?
	       __memfd_protect_read(iocb, index) : 0;
}

/**
 * memfd_protect_access_begin() - the kernel is about to write a page it got
 * @vma: A VMA that maps it.
 * @addr: Its address.
 * @page: The page, got with FOLL_GET | FOLL_WRITE.
 *
 * A reference does not keep memfd_protect() from returning, a pin does.
 *
 * Context: mmap lock.
 * Return: False if the page is protected by now: give it back and get it anew.
 * Otherwise memfd_protect_access_end() must follow.
 */
static inline bool memfd_protect_access_begin(struct vm_area_struct *vma,
					      unsigned long addr,
					      struct page *page)
{
	return !vma_memfd_protect(vma) || !(vma->vm_flags & VM_SHARED) ||
	       __memfd_protect_access_begin(vma, addr, page);
}

/**
 * memfd_protect_access_end() - the kernel has written a page
 * @vma: As for memfd_protect_access_begin().
 * @page: The page.
 *
 * Context: mmap lock.
 */
static inline void memfd_protect_access_end(struct vm_area_struct *vma,
					    struct page *page)
{
	if (vma_memfd_protect(vma) && (vma->vm_flags & VM_SHARED))
		__memfd_protect_access_end(page);
}

/**
 * memfd_protect_got_pages() - the kernel has got user pages to write them later
 * @pages: The pages, got with FOLL_GET | FOLL_WRITE.
 * @nr: Their number, or an error.
 *
 * memfd_protect() then takes any reference for a writer's, as memfd sealing
 * does: these cannot be told from others.
 *
 * Context: May sleep.
 * Return: How many of them are left, the references of the others given back; or
 * an error.
 */
static inline int memfd_protect_got_pages(struct page **pages, int nr)
{
	return static_branch_unlikely(&memfd_protect_used) && nr > 0 ?
	       __memfd_protect_got_pages(pages, nr) : nr;
}

/**
 * memfd_protect_pin_begin() - memfd_pin_folios() asks before it pins
 * @file: The memfd.
 * @start: First byte.
 * @end: Last byte.
 *
 * It never waits, as other accesses of the kernel that cannot start over.
 *
 * Context: May sleep.
 * Return: 0 to go on, or a negative error.
 */
static inline int memfd_protect_pin_begin(struct file *file, loff_t start,
					  loff_t end)
{
	return static_branch_unlikely(&memfd_protect_used) ?
	       __memfd_protect_pin_begin(file, start, end) : 0;
}

/**
 * memfd_protect_pin_end() - memfd_pin_folios() has pinned
 * @file: The memfd.
 * @folios: The folios.
 * @nr: Their number.
 * @start: First byte.
 * @end: Last byte.
 *
 * Context: May sleep.
 * Return: False if something is protected by now: unpin, and ask again.
 */
static inline bool memfd_protect_pin_end(struct file *file,
					 struct folio **folios, unsigned int nr,
					 loff_t start, loff_t end)
{
	return !static_branch_unlikely(&memfd_protect_used) ||
	       __memfd_protect_pin_end(file, folios, nr, start, end);
}

/**
 * memfd_protect_pinned() - a folio was pinned by way of a page table
 * @folio: The folio, with the new pin.
 * @flags: FOLL_*.
 *
 * Pins that are there for writing are told from others by a mark.
 *
 * Context: Any. The page table lock, or the entry is compared once more later.
 */
static inline void memfd_protect_pinned(struct folio *folio, unsigned int flags)
{
	if (static_branch_unlikely(&memfd_protect_used) && (flags & FOLL_WRITE))
		__memfd_protect_pinned(folio);
}

#else /* !CONFIG_MEMFD_PROTECT */

static inline void memfd_protect_entries(struct vm_area_struct *vma,
					 unsigned long addr, pte_t *pte) { }

static inline bool vma_memfd_protect(const struct vm_area_struct *vma)
{
	return false;
}

static inline bool memfd_protect_no_pmd(struct vm_area_struct *vma,
					unsigned long addr)
{
	return false;
}

static inline pmd_t memfd_protect_pmd(struct vm_area_struct *vma,
				      unsigned long addr, pmd_t pmd)
{
	return pmd;
}

static inline vm_fault_t memfd_protect_wp_pmd(struct vm_fault *vmf)
{
	return VM_FAULT_FALLBACK;
}

static inline void memfd_protect_zapped_pmd(struct mmu_gather *tlb,
					    const struct vm_area_struct *vma,
					    pmd_t pmd) { }
static inline void memfd_protect_collapse_begin(struct vm_area_struct *vma) { }
static inline void memfd_protect_collapse_end(struct vm_area_struct *vma) { }

static inline bool memfd_protect_end(const struct vm_area_struct *vma,
				     struct folio *folio)
{
	return false;
}

static inline bool memfd_protect_no_batch(const struct vm_area_struct *vma)
{
	return false;
}

static inline bool memfd_protect_no_userfault(const struct vm_area_struct *vma)
{
	return false;
}

static inline bool memfd_protect_no_fill(const struct vm_area_struct *vma)
{
	return false;
}

static inline int memfd_protect_create(struct file *file)
{
	return -EINVAL;
}

static inline void memfd_protect_evict(struct inode *inode) { }

static inline bool memfd_protected(struct inode *inode)
{
	return false;
}

static inline const struct vm_operations_struct *
memfd_protect_mmap(struct inode *inode, bool shared,
		   const struct vm_operations_struct *ops)
{
	return ops;
}

static inline bool memfd_protect_may_wrap(struct inode *inode,
					  const struct vm_area_struct *vma)
{
	return true;
}

static inline void memfd_protect_open(struct inode *inode, struct file *file) { }
static inline void memfd_protect_show_fdinfo(struct seq_file *m,
					     struct file *file) { }

static inline unsigned int memfd_protect_seals(struct file *file)
{
	return 0;
}

static inline void memfd_protect_sealed(struct file *file) { }

static inline vm_fault_t memfd_protect_fault(struct vm_fault *vmf)
{
	return 0;
}

static inline bool memfd_protect_logs(struct vm_area_struct *vma,
				      unsigned long addr)
{
	return false;
}

static inline bool memfd_protect_may_wait(struct mm_struct *mm,
					  unsigned long addr)
{
	return false;
}

static inline bool memfd_protect_at(unsigned long addr)
{
	return false;
}

static inline vm_fault_t memfd_protect_wp_fault(struct vm_fault *vmf)
{
	return 0;
}

static inline void memfd_protect_set_ptes(struct vm_area_struct *vma,
					  unsigned long addr, pte_t *ptep,
					  pte_t pte, unsigned int nr)
{
	set_ptes(vma->vm_mm, addr, ptep, pte, nr);
}

static inline pte_t memfd_protect_pte(struct vm_area_struct *vma,
				      unsigned long addr, pte_t pte)
{
	return pte;
}

static inline int memfd_protect_write(struct kiocb *iocb, struct iov_iter *from)
{
	return 0;
}

static inline int memfd_protect_punch(struct inode *inode, loff_t offset,
				      loff_t len)
{
	return 0;
}

static inline int memfd_protect_truncate(struct inode *inode, loff_t size)
{
	return 0;
}

static inline int memfd_protect_grow(struct inode *inode, loff_t size)
{
	return 0;
}

static inline int memfd_protect_splice_file(struct file *in, loff_t in_pos,
					    struct file *out, loff_t out_pos,
					    size_t *len)
{
	return 0;
}

static inline int memfd_protect_splice_pipe(struct pipe_inode_info *pipe,
					    struct file *out, loff_t pos,
					    size_t *len)
{
	return 0;
}

static inline void memfd_protect_splice_nowait(struct kiocb *iocb, bool waited)
{
}

static inline int memfd_protect_splice_wait(struct file *out, loff_t pos,
					    size_t len)
{
	return 0;
}

static inline int memfd_protect_read(struct kiocb *iocb, pgoff_t index)
{
	return 0;
}

static inline bool memfd_protect_access_begin(struct vm_area_struct *vma,
					      unsigned long addr,
					      struct page *page)
{
	return true;
}

static inline void memfd_protect_access_end(struct vm_area_struct *vma,
					    struct page *page) { }

static inline int memfd_protect_got_pages(struct page **pages, int nr)
{
	return nr;
}

static inline int memfd_protect_pin_begin(struct file *file, loff_t start,
					  loff_t end)
{
	return 0;
}

static inline bool memfd_protect_pin_end(struct file *file,
					 struct folio **folios, unsigned int nr,
					 loff_t start, loff_t end)
{
	return true;
}

static inline void memfd_protect_pinned(struct folio *folio, unsigned int flags)
{
}

#endif /* CONFIG_MEMFD_PROTECT */

#endif /* _LINUX_MEMFD_PROTECT_H */
