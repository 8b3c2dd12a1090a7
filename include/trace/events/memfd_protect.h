/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM memfd_protect

#if !defined(_TRACE_MEMFD_PROTECT_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_MEMFD_PROTECT_H

#include <linux/kdev_t.h>
#include <linux/tracepoint.h>

/*
 * All events are emitted in the context of the task that acts: the one that
 * protects, resolves, scans or closes, the writer that is caught or has waited.
 */

TRACE_EVENT(memfd_protect_set,
	TP_PROTO(dev_t dev, unsigned long ino, loff_t offset, loff_t length,
		 int mode, int ret),
	TP_ARGS(dev, ino, offset, length, mode, ret),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(u64, offset)
		__field(u64, length)
		__field(int, mode)
		__field(int, ret)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->ino = ino;
		__entry->offset = offset;
		__entry->length = length;
		__entry->mode = mode;
		__entry->ret = ret;
	),
	TP_printk("dev %d:%d ino %lu offset %llu length %llu mode %d ret %d",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->offset, __entry->length, __entry->mode,
		  __entry->ret)
);

TRACE_EVENT(memfd_protect_caught,
	TP_PROTO(dev_t dev, unsigned long ino, u64 offset, u64 length,
		 int type, int mode, bool kernel),
	TP_ARGS(dev, ino, offset, length, type, mode, kernel),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(u64, offset)
		__field(u64, length)
		__field(int, type)
		__field(int, mode)
		__field(bool, kernel)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->ino = ino;
		__entry->offset = offset;
		__entry->length = length;
		__entry->type = type;
		__entry->mode = mode;
		__entry->kernel = kernel;
	),
	TP_printk("dev %d:%d ino %lu offset %llu length %llu type %d mode %d kernel %d",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->offset, __entry->length, __entry->type,
		  __entry->mode, __entry->kernel)
);

TRACE_EVENT(memfd_protect_wait,
	TP_PROTO(dev_t dev, unsigned long ino, u64 cookie, u64 offset,
		 u64 length, int type, u64 wait_ns, int result),
	TP_ARGS(dev, ino, cookie, offset, length, type, wait_ns, result),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(u64, cookie)
		__field(u64, offset)
		__field(u64, length)
		__field(int, type)
		__field(u64, wait_ns)
		__field(int, result)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->ino = ino;
		__entry->cookie = cookie;
		__entry->offset = offset;
		__entry->length = length;
		__entry->type = type;
		__entry->wait_ns = wait_ns;
		__entry->result = result;
	),
	TP_printk("dev %d:%d ino %lu cookie %llu offset %llu length %llu type %d wait_ns %llu result %d",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->cookie, __entry->offset, __entry->length,
		  __entry->type, __entry->wait_ns, __entry->result)
);

TRACE_EVENT(memfd_protect_resolve,
	TP_PROTO(dev_t dev, unsigned long ino, u64 cookie, u64 offset,
		 u64 length, int action, unsigned int waiters),
	TP_ARGS(dev, ino, cookie, offset, length, action, waiters),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(u64, cookie)
		__field(u64, offset)
		__field(u64, length)
		__field(int, action)
		__field(unsigned int, waiters)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->ino = ino;
		__entry->cookie = cookie;
		__entry->offset = offset;
		__entry->length = length;
		__entry->action = action;
		__entry->waiters = waiters;
	),
	TP_printk("dev %d:%d ino %lu cookie %llu offset %llu length %llu action %d waiters %u",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->cookie, __entry->offset, __entry->length,
		  __entry->action, __entry->waiters)
);

TRACE_EVENT(memfd_protect_scan,
	TP_PROTO(dev_t dev, unsigned long ino, u64 offset, u64 length,
		 unsigned int ranges, u64 pages, bool take),
	TP_ARGS(dev, ino, offset, length, ranges, pages, take),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(u64, offset)
		__field(u64, length)
		__field(unsigned int, ranges)
		__field(u64, pages)
		__field(bool, take)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->ino = ino;
		__entry->offset = offset;
		__entry->length = length;
		__entry->ranges = ranges;
		__entry->pages = pages;
		__entry->take = take;
	),
	TP_printk("dev %d:%d ino %lu offset %llu length %llu ranges %u pages %llu take %d",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->offset, __entry->length, __entry->ranges,
		  __entry->pages, __entry->take)
);

TRACE_EVENT(memfd_protect_close,
	TP_PROTO(dev_t dev, unsigned long ino, unsigned long waiters,
		 u64 events),
	TP_ARGS(dev, ino, waiters, events),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(unsigned long, waiters)
		__field(u64, events)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->ino = ino;
		__entry->waiters = waiters;
		__entry->events = events;
	),
	TP_printk("dev %d:%d ino %lu waiters %lu events %llu",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->waiters, __entry->events)
);

#endif /* _TRACE_MEMFD_PROTECT_H */

#include <trace/define_trace.h>
