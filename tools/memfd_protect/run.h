/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * memfdctl run: what its process and the library that it preloads say to each other.
 *
 * Objects that have a name, those of shm_open(3) and SysV segments, are kept by the
 * keeper, a process that lives as long as any process of the program does. Clients
 * connect to it for each question, send a request, and get an answer with a descriptor
 * perhaps. Between two questions nobody has anything of the other's.
 */
#ifndef MEMFDCTL_RUN_H
#define MEMFDCTL_RUN_H

#include <stdint.h>
#include <sys/types.h>

/* Who is smaller stays what it is. */
#define RUN_LEAST	(2UL << 20)
/* Flags for memfd_create(2) in hex, the abstract socket's name, the token */
#define RUN_ENV		"MEMFDCTL_RUN"
#define RUN_TOKEN	32
/* Identifiers of segments, where the kernel's are not until it has made 65000 at once */
#define RUN_FIRST_ID	0x7e4d0000
#define RUN_LAST_ID	0x7e4dffff

enum run_op {
	RUN_OPEN,	/* shm_open(): name, flags, mode */
	RUN_UNLINK,	/* shm_unlink(): name */
	RUN_GET,	/* shmget(): key, size, flags */
	RUN_ATTACH,	/* shmat(): id, flags */
	RUN_DETACHED,	/* shmdt(): id */
	RUN_STAT,	/* shmctl(): id */
	RUN_SET,	/* likewise, uid, gid, mode */
	RUN_REMOVE,	/* likewise, id */
	RUN_LOCK,	/* likewise, id */
	RUN_UNLOCK,	/* likewise, id */
};

/**
 * struct run_request - a question
 * @token: From the environment: who does not have it is not one of ours.
 * @op: One of enum run_op.
 * @flags: Of the function that was called. If something may be made IPC_CREAT or O_CREAT
 *	   is set: not until the kernel has none of that name.
 * @mode: Of the function that was called, without the bits of the umask.
 * @key: Of a segment.
 * @id: Of a segment.
 * @uid: A segment's new owner.
 * @gid: Likewise.
 * @size: Bytes.
 * @name: Of a file, without the slash that it begins with.
 */
struct run_request {
	char token[RUN_TOKEN];
	uint32_t op;
	int32_t flags;
	uint32_t mode;
	int32_t key;
	int32_t id;
	uint32_t uid;
	uint32_t gid;
	uint64_t size;
	char name[256];
};

/**
 * struct run_reply - the answer
 * @error: 0, or errno. ENOENT: the keeper has none.
 * @id: Of the segment.
 * @key: Its key.
 * @uid: Its owner.
 * @gid: Likewise.
 * @cuid: Who made it.
 * @cgid: Likewise.
 * @mode: Its mode, with SHM_DEST.
 * @cpid: Who made it.
 * @lpid: Who was the last to attach or detach.
 * @size: Bytes.
 * @attached: How many mappings there are.
 * @atime: Time of the last attach, in seconds.
 * @dtime: Of the last detach.
 * @ctime: Of the last change.
 */
struct run_reply {
	int32_t error;
	int32_t id;
	int32_t key;
	uint32_t uid;
	uint32_t gid;
	uint32_t cuid;
	uint32_t cgid;
	uint32_t mode;
	int32_t cpid;
	int32_t lpid;
	uint64_t size;
	uint64_t attached;
	int64_t atime;
	int64_t dtime;
	int64_t ctime;
};

/* keeper.c */
int keeper_start(const char *name, const char *token, unsigned int memfd_flags);
void keeper_run(int socket, int signals, void (*ended)(pid_t pid, int status));

#endif /* MEMFDCTL_RUN_H */
