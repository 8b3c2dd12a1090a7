/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM ptshare

#if !defined(_TRACE_PTSHARE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_PTSHARE_H

#include <linux/fs.h>
#include <linux/kdev_t.h>
#include <linux/tracepoint.h>

/*
 * Addresses are those of the process whose mapping it is. That is nearly always the
 * task that is running; where tables are freed and TLBs are flushed there is none.
 */

/* enum ptshare_reason */
#define PTSHARE_REASONS					\
	EM(PTSHARE_BY_UNMAP,		"unmap")	\
	EM(PTSHARE_BY_CLASS,		"class")	\
	EM(PTSHARE_BY_ACCESS,		"access")	\
	EM(PTSHARE_BY_HUGEPAGE,		"hugepage")	\
	EM(PTSHARE_BY_USERFAULTFD,	"userfaultfd")	\
	EM(PTSHARE_BY_SOFT_DIRTY,	"soft_dirty")	\
	EM(PTSHARE_BY_GUARD,		"guard")	\
	EM(PTSHARE_BY_SPLIT,		"split")	\
	EM(PTSHARE_BY_MERGE,		"merge")	\
	EMe(PTSHARE_BY_MOVE,		"move")

#undef EM
#undef EMe
#define EM(value, name)		TRACE_DEFINE_ENUM(value);
#define EMe(value, name)	TRACE_DEFINE_ENUM(value);

PTSHARE_REASONS

#undef EM
#undef EMe
#define EM(value, name)		{ value, name },
#define EMe(value, name)	{ value, name }

TRACE_EVENT(ptshare_link,
	TP_PROTO(const struct inode *inode, unsigned long address,
		 unsigned long length, unsigned long links,
		 unsigned long tables),
	TP_ARGS(inode, address, length, links, tables),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(unsigned long, address)
		__field(unsigned long, length)
		__field(unsigned long, links)
		__field(unsigned long, tables)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->address = address;
		__entry->length = length;
		__entry->links = links;
		__entry->tables = tables;
	),
	TP_printk("dev %d:%d ino %lu address 0x%lx length %lu links %lu tables %lu",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->address, __entry->length, __entry->links,
		  __entry->tables)
);

TRACE_EVENT(ptshare_unlink,
	TP_PROTO(const struct inode *inode, unsigned long address,
		 unsigned long length, unsigned long links,
		 unsigned long tables, int reason),
	TP_ARGS(inode, address, length, links, tables, reason),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(unsigned long, address)
		__field(unsigned long, length)
		__field(unsigned long, links)
		__field(unsigned long, tables)
		__field(int, reason)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->address = address;
		__entry->length = length;
		__entry->links = links;
		__entry->tables = tables;
		__entry->reason = reason;
	),
	TP_printk("dev %d:%d ino %lu address 0x%lx length %lu links %lu tables %lu reason %s",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->address, __entry->length, __entry->links,
		  __entry->tables,
		  __print_symbolic(__entry->reason, PTSHARE_REASONS))
);

TRACE_EVENT(ptshare_unshare,
	TP_PROTO(const struct inode *inode, unsigned long address,
		 unsigned long length, int reason),
	TP_ARGS(inode, address, length, reason),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(unsigned long, address)
		__field(unsigned long, length)
		__field(int, reason)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->address = address;
		__entry->length = length;
		__entry->reason = reason;
	),
	TP_printk("dev %d:%d ino %lu address 0x%lx length %lu reason %s",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->address, __entry->length,
		  __print_symbolic(__entry->reason, PTSHARE_REASONS))
);

TRACE_EVENT(ptshare_free,
	TP_PROTO(const struct inode *inode, u64 offset, int class),
	TP_ARGS(inode, offset, class),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(u64, offset)
		__field(int, class)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->offset = offset;
		__entry->class = class;
	),
	TP_printk("dev %d:%d ino %lu offset %llu class %d",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->offset, __entry->class)
);

TRACE_EVENT(ptshare_flush,
	TP_PROTO(const struct inode *inode, u64 offset, u64 length,
		 unsigned int mms, bool later),
	TP_ARGS(inode, offset, length, mms, later),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, ino)
		__field(u64, offset)
		__field(u64, length)
		__field(unsigned int, mms)
		__field(bool, later)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->offset = offset;
		__entry->length = length;
		__entry->mms = mms;
		__entry->later = later;
	),
	TP_printk("dev %d:%d ino %lu offset %llu length %llu mms %u later %d",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->offset, __entry->length, __entry->mms,
		  __entry->later)
);

#endif /* _TRACE_PTSHARE_H */

#include <trace/define_trace.h>
