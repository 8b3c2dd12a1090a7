/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the event fd of a memfd (fs/memfd_notify.c) asks of its protection (mm/).
 */
#ifndef _LINUX_MEMFD_NOTIFY_H
#define _LINUX_MEMFD_NOTIFY_H

#include <linux/types.h>
#include <linux/wait.h>

struct file;
struct memfd_event;
struct memfd_pending;
struct memfd_protect;
struct memfd_protect_range;
struct memfd_scan;
struct seq_file;

/**
 * struct memfd_span - a range of pages
 * @first: First page offset.
 * @last: Last page offset.
 */
struct memfd_span {
	pgoff_t first;
	pgoff_t last;
};

int memfd_protect_check_notify(struct file *file);
struct memfd_protect *memfd_protect_open_notify(struct file *file, bool kernel);
void memfd_protect_release_notify(struct memfd_protect *mp);
struct memfd_pending *memfd_protect_next_event(struct memfd_protect *mp,
					       struct memfd_event *record);
void memfd_protect_end_event(struct memfd_protect *mp,
			     struct memfd_pending *event, bool delivered);
bool memfd_protect_readable(struct memfd_protect *mp);
wait_queue_head_t *memfd_protect_readers(struct memfd_protect *mp);
int memfd_protect_by_handler(struct memfd_protect *mp,
			     const struct memfd_protect_range *range);
int memfd_protect_resolve(struct memfd_protect *mp, u64 cookie, bool allow);
int memfd_protect_scan(struct memfd_protect *mp, pgoff_t *start, pgoff_t last,
		       struct memfd_span *spans, unsigned int nr, bool take,
		       bool more);
void memfd_protect_unscan(struct memfd_protect *mp, struct memfd_span *spans,
			  unsigned int nr);
void memfd_protect_scanned(struct memfd_protect *mp,
			   const struct memfd_scan *scan, unsigned int nr,
			   u64 pages);
void memfd_protect_show(struct seq_file *m, struct memfd_protect *mp);

#endif /* _LINUX_MEMFD_NOTIFY_H */
