/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libmemfdprotect: write protection of memfds by file offset.
 *
 * memfd_protect() and memfd_notify() are the system calls. The rest makes them easier
 * to use: a feature test, events and ranges one at a time.
 *
 * Every function that fails returns -1 or NULL with errno set, and has changed nothing
 * but what its manual page says. On kernels without memfd_protect that is ENOSYS. They
 * may be called by several threads at once, but for an iterator, which belongs to
 * one thread at a time.
 */
#ifndef MEMFDPROTECT_H
#define MEMFDPROTECT_H

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The copy that comes with the library, where the system's headers are older */
#if defined(__has_include)
#if __has_include(<linux/memfd_protect.h>)
#include <linux/memfd_protect.h>
#else
#include <memfdprotect/memfd_protect.h>
#endif
#else
#include <linux/memfd_protect.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/**
 * memfd_protect() - change the write protection of a range of a memfd
 * @fd: A memfd made with MFD_ALLOW_PROTECT, open for writing.
 * @offset: First byte, a multiple of the page size.
 * @length: Bytes, a multiple of the page size. 0: to the largest offset.
 * @prot: PROT_READ to protect, PROT_READ | PROT_WRITE to remove protection.
 * @flags: With PROT_READ one of MEMFD_PROTECT_WAIT, _ASYNC and _DENY; otherwise 0.
 *
 * Return: 0, or -1 with the errors of memfd_protect(2).
 */
int memfd_protect(int fd, off_t offset, size_t length, int prot,
		  unsigned int flags);

/**
 * memfd_notify() - open the event fd of a memfd
 * @fd: The memfd, open for writing.
 * @flags: Bit set of MEMFD_NOTIFY_NONBLOCK and MEMFD_NOTIFY_KERNEL.
 *
 * Return: The event fd, or -1 with the errors of memfd_notify(2).
 */
int memfd_notify(int fd, unsigned int flags);

/**
 * memfdp_features() - what this kernel can do
 * @features: Out: bit set of MEMFD_FEATURE_*.
 *
 * Return: 0, or -1 with ENOSYS if it has no memfd_protect.
 */
int memfdp_features(uint64_t *features);

/**
 * memfdp_create() - make a memfd that can be protected
 * @name: Its name, as for memfd_create(2).
 * @size: Bytes.
 * @flags: More flags of memfd_create(2); MFD_ALLOW_PROTECT and MFD_CLOEXEC are added.
 *	   MFD_SHARE_PGTABLES is left out where the kernel does not have it.
 *
 * Return: The memfd; or -1 with ENOSYS if there is no memfd_protect, or an error of
 * memfd_create(2) or ftruncate(2).
 */
int memfdp_create(const char *name, uint64_t size, unsigned int flags);

/**
 * memfdp_resolve() - answer an event
 * @notify_fd: The event fd.
 * @cookie: &memfd_event.cookie of the event.
 * @allow: Whether its writers may go on, and the range is unprotected.
 *
 * Return: 0, or -1. ENOENT: somebody or something else has resolved it.
 */
int memfdp_resolve(int notify_fd, uint64_t cookie, bool allow);

/**
 * memfdp_protect() - memfd_protect() for the holder of the event fd
 * @notify_fd: The event fd; its owner is not bound by seals.
 * @offset: As for memfd_protect().
 * @length: Likewise.
 * @prot: Likewise.
 * @flags: Likewise.
 *
 * Return: As memfd_protect().
 */
int memfdp_protect(int notify_fd, off_t offset, size_t length, int prot,
		   unsigned int flags);

/* Events, one at a time */
struct memfdp_events;

/**
 * memfdp_events_new() - begin to read the events of an event fd
 * @notify_fd: The event fd, which stays the caller's.
 * @batch: How many events are read at a time, at most; 0: as many as are useful.
 *
 * Several threads may read one event fd, each by an iterator of its own: each event
 * goes to one of them.
 *
 * Return: The iterator for memfdp_events_free(), or NULL with ENOMEM.
 */
struct memfdp_events *memfdp_events_new(int notify_fd, size_t batch);

/**
 * memfdp_events_next() - the next event
 * @events: The iterator.
 *
 * Reads if no event is left from the last time. If the event fd is non-blocking call it
 * until it fails with EAGAIN before you wait for the fd again: events that it has read
 * already do not make the fd readable.
 *
 * Return: The event, which is valid until the next call; or NULL with an error of
 * read(2): EAGAIN, EINTR, EBADF. EPROTO: what was read is no event.
 */
const struct memfd_event *memfdp_events_next(struct memfdp_events *events);

/**
 * memfdp_events_left() - events that were read and not returned yet
 * @events: The iterator.
 *
 * Return: Whether memfdp_events_next() would return one without reading.
 */
bool memfdp_events_left(const struct memfdp_events *events);

/**
 * memfdp_events_free() - end of reading
 * @events: The iterator, or NULL. Its writers keep waiting for events that it has read
 *	    and not returned.
 */
void memfdp_events_free(struct memfdp_events *events);

/* Ranges of the log, one at a time */
struct memfdp_scan;

/**
 * memfdp_scan_new() - begin to look at what was written in ASYNC ranges
 * @notify_fd: The event fd, which stays the caller's.
 * @start: First byte of the file to look at, a multiple of the page size.
 * @end: First byte no longer looked at, likewise. 0: to the largest offset.
 * @flags: MEMFD_SCAN_REPROTECT: take out of the log what is found, and protect it again.
 *	   Or 0.
 * @batch: How many ranges are asked for at a time, at most; 0: as many as are useful.
 *
 * With MEMFD_SCAN_REPROTECT ranges are taken a batch at a time: call
 * memfdp_scan_next() until it returns 0, or those taken are lost.
 *
 * Return: The iterator for memfdp_scan_free(), or NULL with ENOMEM.
 */
struct memfdp_scan *memfdp_scan_new(int notify_fd, uint64_t start, uint64_t end,
				    unsigned int flags, size_t batch);

/**
 * memfdp_scan_next() - the next range
 * @scan: The iterator.
 * @range: Out: the range, if there is one.
 *
 * Return: 1 for a range, 0 if there are no more, -1 with EINVAL, EBADF, ENOMEM or EINTR.
 * It can be called again then.
 */
int memfdp_scan_next(struct memfdp_scan *scan, struct memfd_range *range);

/**
 * memfdp_scan_free() - end of the scan
 * @scan: The iterator, or NULL.
 */
void memfdp_scan_free(struct memfdp_scan *scan);

#ifdef __cplusplus
}
#endif

#endif /* MEMFDPROTECT_H */
