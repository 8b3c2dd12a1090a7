// SPDX-License-Identifier: BSD-3-Clause
/*
 * vmcount_linux - the only process of the small Linux of demo-qemu, its init.
 *
 * It does what vmcount.c does, in two thirds of the memory that is free.
 */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

int main(void)
{
	size_t page = sysconf(_SC_PAGESIZE), half;
	uint32_t number = 0, seed = 1, pages;
	struct sysinfo info;
	char *memory;

	sysinfo(&info);
	half = info.freeram * info.mem_unit / 3 / page * page;
	pages = half / page;
	memory = mmap(NULL, 2 * half, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED) {
		perror("memory");
		return 1;
	}
	printf("vmcount: %u pages\n", 2 * pages);
	/* Something that is to be copied */
	for (size_t i = 0; i < pages; i++)
		*(uint32_t *)(memory + i * page) = *(uint32_t *)(memory + half + i * page) = 1;
	for (;;) {
		volatile uint32_t *one, *two;

		seed = seed * 1664525 + 1013904223;
		one = (void *)(memory + seed / 7 % pages * page);
		two = (void *)((char *)one + half);
		if (*one != *two) {
			puts("torn");
			fflush(stdout);
			pause();
		}
		*one = ++number;
		*two = number;
		if (number % 50000 == 0) {
			printf("count %u\n", number);
			fflush(stdout);
		}
	}
}
