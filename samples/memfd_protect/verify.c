// SPDX-License-Identifier: BSD-3-Clause
/*
 * The proof. The snapshot is read back from its file and each page is compared
 * with what its writer had recorded at T0, outside the protected memory: the
 * version, and the checksum, which is also computed anew from the contents.
 * Then the live cache is compared with its last records: no change was lost.
 */
#include <err.h>
#include <fcntl.h>
#include <unistd.h>

#include "sga.h"

static bool intact(const struct sga_page *page, size_t number)
{
	return page->magic == SGA_MAGIC && page->number == number &&
	       page->checksum == page_checksum(page);
}

void verify(const struct sga *sga, struct verdict *verdict)
{
	int fd = open(sga->snapshot_path, O_RDONLY | O_CLOEXEC);
	struct sga_page page;
	size_t i;

	if (fd < 0)
		err(1, "%s", sga->snapshot_path);
	*verdict = (struct verdict){ 0 };
	while (read(fd, &page, sizeof(page)) == (ssize_t)sizeof(page)) {
		i = verdict->pages++;
		if (i >= sga->nr_pages)
			break;
		if (!intact(&page, i))
			verdict->bad_checksum++;
		else if (page.version != sga->t0[i].version ||
			 page.checksum != sga->t0[i].checksum)
			verdict->bad_version++;
	}
	close(fd);

	for (i = 0; i < sga->nr_pages; i++) {
		const struct page_record *record = &sga->control->slot[i].record;

		if (!intact(&sga->view[i], i) ||
		    sga->view[i].version != record->version ||
		    sga->view[i].checksum != record->checksum)
			verdict->bad_cache++;
	}
}
