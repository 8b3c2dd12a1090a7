// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl run: a message with a descriptor, or without.
 */
#define _GNU_SOURCE
#include "run.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/**
 * message_send() - send a message
 * @sock: The socket.
 * @data: What to send.
 * @size: Bytes of it.
 * @fd: A descriptor, or -1.
 *
 * Return: 0, or -1.
 */
int message_send(int sock, const void *data, size_t size, int fd)
{
	struct iovec iov = { (void *)data, size };
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *cmsg;

	if (fd >= 0) {
		msg.msg_control = control.space;
		msg.msg_controllen = sizeof(control.space);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

/**
 * message_receive() - receive a message
 * @sock: The socket.
 * @data: Where to put it.
 * @size: Bytes that it has to have.
 * @fd: Out: the descriptor, or -1.
 * @flags: Of recvmsg(2).
 *
 * Return: @size; or -1, with EMFILE if there is no room for the descriptor.
 */
ssize_t message_receive(int sock, void *data, size_t size, int *fd, int flags)
{
	struct iovec iov = { data, size };
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	struct cmsghdr *cmsg;
	ssize_t got;

	*fd = -1;
	do
		got = recvmsg(sock, &msg, flags | MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(cmsg), sizeof(*fd));
	if (got == (ssize_t)size && !(msg.msg_flags & MSG_CTRUNC))
		return got;
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = msg.msg_flags & MSG_CTRUNC ? EMFILE : EPROTO;
	return -1;
}
