/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * Write protection of memfds by file offset, and its event fd.
 *
 * User space includes <linux/memfd.h>, which includes this file. The contract
 * is in Documentation/userspace-api/memfd_protect.rst, memfd_protect(2) and
 * memfd_notify(2).
 */
#ifndef _UAPI_LINUX_MEMFD_PROTECT_H
#define _UAPI_LINUX_MEMFD_PROTECT_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* memfd_create(2): memfd_protect(2) may be used on this memfd */
#define MFD_ALLOW_PROTECT	0x00100000U
/* memfd_create(2): processes that map this memfd share its leaf page tables */
#define MFD_SHARE_PGTABLES	0x00200000U

/*
 * fcntl(F_ADD_SEALS), only for a memfd with MFD_ALLOW_PROTECT: memfd_protect(2) and
 * memfd_notify(2) fail with EPERM. F_SEAL_WRITE and F_SEAL_FUTURE_WRITE have that
 * effect too. The holder of the event fd has MEMFD_NOTIFY_PROTECT.
 */
#ifndef F_SEAL_PROTECT
#define F_SEAL_PROTECT		0x0040
#endif

/*
 * memfd_protect(2) modes, for prot == PROT_READ: what happens to a writer of
 * the range.
 */
/** MEMFD_PROTECT_WAIT: it sleeps until the range or its event is resolved */
#define MEMFD_PROTECT_WAIT	0
/** MEMFD_PROTECT_ASYNC: it goes on, and the written page is logged once */
#define MEMFD_PROTECT_ASYNC	1
/** MEMFD_PROTECT_DENY: SIGBUS, EPERM or EFAULT */
#define MEMFD_PROTECT_DENY	2

/*
 * memfd_notify(2) flags
 */
/** MEMFD_NOTIFY_NONBLOCK: open with O_NONBLOCK, which <fcntl.h> defines */
#define MEMFD_NOTIFY_NONBLOCK	O_NONBLOCK
/** MEMFD_NOTIFY_KERNEL: kernel-mode accesses to WAIT ranges wait too */
#define MEMFD_NOTIFY_KERNEL	1
/**
 * MEMFD_NOTIFY_QUERY: alone and with an fd of -1: return the bits of
 * MEMFD_NOTIFY_FEATURES, and no event fd
 */
#define MEMFD_NOTIFY_QUERY	2

/* memfd_event.type */
#define MEMFD_EVENT_FAULT	1	/* a store or GUP through a mapping */
#define MEMFD_EVENT_WRITE	2	/* write(2) and its kin */
#define MEMFD_EVENT_PUNCH	3	/* a hole is punched */
#define MEMFD_EVENT_TRUNCATE	4	/* the file shrinks */
#define MEMFD_EVENT_DIRTY	5	/* logged since a scan, ASYNC */

/* memfd_event.flags */
#define MEMFD_EVENT_F_WAITING	1	/* a writer sleeps until this is resolved */
#define MEMFD_EVENT_F_KERNEL	2	/* a kernel-mode access */

/**
 * struct memfd_event - one record that read(2) of the event fd returns
 * @len: Bytes in this record; step from record to record by it.
 * @type: One of MEMFD_EVENT_*.
 * @flags: Bit set of MEMFD_EVENT_F_*.
 * @cookie: Names this event to MEMFD_NOTIFY_RESOLVE. Never used twice.
 *          0: there is nothing to resolve.
 * @offset: First byte of the event's range in the file, page-aligned.
 * @length: Bytes in the event's range, a multiple of the page size.
 * @pid: The writer's process in the reader's PID namespace, 0 if it is not
 *       visible there.
 * @tid: The writer's thread, likewise.
 * @time_ns: CLOCK_MONOTONIC in nanoseconds when the writer was caught, in the reader's
 *	     time namespace.
 */
struct memfd_event {
	__u32 len;
	__u16 type;
	__u16 flags;
	__u64 cookie;
	__u64 offset;
	__u64 length;
	__s32 pid;
	__s32 tid;
	__u64 time_ns;
};

/* memfd_resolve.action */
#define MEMFD_RESOLVE_ALLOW	0	/* unprotect the range, wake its writers */
#define MEMFD_RESOLVE_DENY	1	/* keep it protected, its writers fail */

/**
 * struct memfd_resolve - argument of MEMFD_NOTIFY_RESOLVE
 * @cookie: &memfd_event.cookie of the event.
 * @action: One of MEMFD_RESOLVE_*.
 * @reserved: Must be 0.
 */
struct memfd_resolve {
	__u64 cookie;
	__u32 action;
	__u32 reserved;
};

/**
 * struct memfd_range - a range of the file
 * @offset: First byte, page-aligned.
 * @length: Bytes, a multiple of the page size.
 */
struct memfd_range {
	__u64 offset;
	__u64 length;
};

/* memfd_scan.flags */
#define MEMFD_SCAN_REPROTECT	1	/* take what is returned, protect it again */

/**
 * struct memfd_scan - argument of MEMFD_NOTIFY_SCAN
 * @start: In: first byte of the file to look at, page-aligned.
 * @end: In: first byte no longer looked at, page-aligned. 0: the largest
 *       offset.
 * @ranges: In: address of an array of struct memfd_range to fill.
 * @nr_ranges: In: elements that fit in @ranges, at least 1.
 * @flags: In: bit set of MEMFD_SCAN_*.
 * @walk_end: Out: where to go on if @ranges was too small, otherwise the end
 *            of the scanned range.
 */
struct memfd_scan {
	__u64 start;
	__u64 end;
	__u64 ranges;
	__u64 nr_ranges;
	__u64 flags;
	__u64 walk_end;
};

/**
 * struct memfd_protect_range - argument of MEMFD_NOTIFY_PROTECT
 * @offset: As the arguments of memfd_protect(2).
 * @length: Likewise.
 * @prot: Likewise.
 * @flags: Likewise.
 */
struct memfd_protect_range {
	__u64 offset;
	__u64 length;
	__u32 prot;
	__u32 flags;
};

#define MEMFD_NOTIFY_RESOLVE	_IOW('M', 1, struct memfd_resolve)
#define MEMFD_NOTIFY_SCAN	_IOWR('M', 2, struct memfd_scan)
#define MEMFD_NOTIFY_FEATURES	_IOR('M', 3, __u64)
#define MEMFD_NOTIFY_PROTECT	_IOW('M', 4, struct memfd_protect_range)

/*
 * Bits of MEMFD_NOTIFY_FEATURES and MEMFD_NOTIFY_QUERY: modes from bit 0, ioctls
 * from bit 8, what the kernel can do for memfds from bit 16. Bit 31 and above are
 * not used.
 */
#define MEMFD_FEATURE_WAIT	(1ULL << 0)
#define MEMFD_FEATURE_ASYNC	(1ULL << 1)
#define MEMFD_FEATURE_DENY	(1ULL << 2)
#define MEMFD_FEATURE_RESOLVE	(1ULL << 8)
#define MEMFD_FEATURE_SCAN	(1ULL << 9)
#define MEMFD_FEATURE_PROTECT	(1ULL << 10)
/** MEMFD_FEATURE_SHARE_PGTABLES: memfd_create(2) takes MFD_SHARE_PGTABLES here */
#define MEMFD_FEATURE_SHARE_PGTABLES	(1ULL << 16)
/** MEMFD_FEATURE_SEAL_PROTECT: there is F_SEAL_PROTECT */
#define MEMFD_FEATURE_SEAL_PROTECT	(1ULL << 17)

#endif /* _UAPI_LINUX_MEMFD_PROTECT_H */
