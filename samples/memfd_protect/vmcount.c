// SPDX-License-Identifier: BSD-3-Clause
/*
 * vmcount - what runs in the virtual machine of demo-qemu, instead of an operating system.
 *
 * It counts, and writes each number to a page of the lower half of its memory, and then
 * to the page that is as far into the upper half. So at every moment the two of a pair
 * are the same, but for the pair that is being written. Before it writes a pair it looks
 * whether that is so: a copy of its memory that is not of one moment is found out by
 * whoever goes on from it. It says on the serial port how far it is.
 *
 * A multiboot program, 32 bits, without any library. Linked at 1 MiB; it uses memory from
 * 4 MiB on.
 */
#include <stdint.h>

#define COM1	0x3f8
#define PAGE	4096
#define FIRST	(4u << 20)

__attribute__((section(".multiboot"), used))
static const struct {
	uint32_t magic, flags, checksum;
} header = { 0x1badb002, 2, -(0x1badb002 + 2) };

struct boot_info {
	uint32_t flags;
	uint32_t mem_lower;
	uint32_t mem_upper;	/* KiB from 1 MiB on */
};

static void out(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t in(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void put(const char *text)
{
	for (; *text; text++) {
		while (!(in(COM1 + 5) & 0x20))
			;
		out(COM1, *text);
	}
}

static void put_number(uint32_t number)
{
	char text[12] = { 0 };
	int at = sizeof(text) - 1;

	do
		text[--at] = '0' + number % 10;
	while ((number /= 10));
	put(text + at);
}

/* Fills all memory first, so that there is something to be copied. */
__attribute__((used))
void run_forever(const struct boot_info *info)
{
	uint32_t end = (info->mem_upper << 10) + (1u << 20);
	uint32_t half = ((end - FIRST) / 2) & ~(PAGE - 1u), pages = half / PAGE;
	uint32_t number = 0, seed = 1;

	put("vmcount: ");
	put_number(2 * pages);
	put(" pages\n");
	for (uint32_t i = 0; i < pages; i++) {
		*(volatile uint32_t *)(FIRST + i * PAGE) = 1;
		*(volatile uint32_t *)(FIRST + half + i * PAGE) = 1;
	}
	for (;;) {
		volatile uint32_t *one, *two;

		seed = seed * 1664525 + 1013904223;
		one = (uint32_t *)(FIRST + seed / 7 % pages * PAGE);
		two = one + half / 4;
		if (*one != *two) {
			put("torn\n");
			for (;;)
				__asm__ volatile("hlt");
		}
		*one = ++number;
		*two = number;
		if (number % 50000 == 0) {
			put("count ");
			put_number(number);
			put("\n");
		}
	}
}

__asm__(".globl _start\n"
	"_start:\n"
	"	mov $stack_end, %esp\n"
	"	push %ebx\n"
	"	call run_forever\n"
	".bss\n"
	"	.align 16\n"
	"	.skip 16384\n"
	"stack_end:\n"
	".text\n");
