/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * memfdctl run: what its keeper and the library that it preloads say to each other.
 *
 * Files of shm_open(3) and SysV segments are the kernel's still: they are made, found,
 * opened, counted and removed by it. Their memory is a memfd, which the keeper has, and
 * gives to those who have opened the file, or may attach the segment. It is a process
 * that lives as long as any process of the program does. Clients connect for each
 * question; between two of them nobody has anything of the other's.
 */
#ifndef MEMFDCTL_RUN_H
#define MEMFDCTL_RUN_H

#include <stdint.h>
#include <sys/types.h>

/* What is smaller stays what it is. */
#define RUN_LEAST	(2UL << 20)
/* Flags for memfd_create(2) in hex, the keeper's process, its socket's name, the token */
#define RUN_ENV		"MEMFDCTL_RUN"
#define RUN_TOKEN	32

enum run_op {
	RUN_FILE,	/* memory of a file, which comes with the question as a descriptor */
	RUN_SEGMENT,	/* memory of a segment */
};

/**
 * struct run_request - a question
 * @token: From the environment: who does not have it is not one of ours.
 * @op: One of enum run_op.
 * @flags: Of open(2), or of shmat(2).
 * @id: Of the segment.
 */
struct run_request {
	char token[RUN_TOKEN];
	uint32_t op;
	int32_t flags;
	int32_t id;
};

/**
 * struct run_reply - the answer; with a descriptor if there is no error
 * @error: 0, or errno. ENOENT: it has other memory, as the kernel gave it.
 * @size: Bytes of the segment.
 */
struct run_reply {
	int32_t error;
	uint64_t size;
};

/* keeper.c */
int keeper_start(const char *name, const char *token, unsigned int memfd_flags);
void keeper_run(int socket, int signals, void (*ended)(pid_t pid, int status));

/* message.c, in both */
int message_send(int sock, const void *data, size_t size, int fd);
ssize_t message_receive(int sock, void *data, size_t size, int *fd, int flags);

#endif /* MEMFDCTL_RUN_H */
