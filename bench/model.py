#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""What machines would need that are too large to measure here, from slopes that were measured.

Usage: bench/model.py    prints it; scripts/readme keeps bench/results/model.txt the same

Each law is a straight line through two measured points. A third one that was measured too, and
is not used for the line, says how good it is.
"""
import sys

import results

LARGE = [('300 GiB, 1500 clients', 300, 1500), ('1 TiB, 10000 clients', 1024, 10000)]


def row(name, case, n, variant='', against=None, unit=None):
    found = [row for row in results.named(name)['rows'] if row['case'] == case and row['n'] == n
             and row['variant'] == variant and (against is None or row.get('against') == against)
             and (unit is None or row['unit'] == unit)]
    if not found:
        raise SystemExit(f'{name}: no row of {case}, {variant}, {n}')
    return found[0]


class Line:
    """Through two points"""

    def __init__(self, a, b):
        self.slope = (b[1] - a[1]) / (b[0] - a[0])
        self.start = a[1] - a[0] * self.slope

    def at(self, x):
        return self.start + x * self.slope


def quantity(value, units):
    """With the largest unit that leaves a figure of at least one; two digits are known"""
    for factor, unit in units:
        if value >= factor:
            return f'{value / factor:.3g} {unit}'
    return f'{value:.3g} {units[-1][1]}'


def kb(value):
    return quantity(value, [(1 << 30, 'TiB'), (1 << 20, 'GiB'), (1 << 10, 'MiB'), (1, 'kB')])


def us(value):
    return quantity(value, [(3.6e9, 'h'), (1e6, 's'), (1e3, 'ms'), (1, 'us')])


def checked(what, line, at, measured, unit):
    return f'  {what:<58} {unit(line.at(at)):>10} {unit(measured):>10}  {100 * (line.at(at) / measured - 1):+.1f} %\n'


def model():
    growth = 'page tables when each has touched all of 1 GiB'
    off = {n: row('tables', growth, n, against='without sharing')['theirs'] for n in (16, 256, 1500)}
    on = {n: row('tables', growth, n, against='without sharing')['ours'] for n in (16, 256, 1500)}
    tables_off = Line((16, off[16]), (256, off[256]))
    tables_on = Line((16, on[16]), (256, on[256]))
    protect = 'write-protect 64 MiB'
    each = {n: row('ptshare', protect, n, against='without sharing')['theirs'] for n in (1, 16, 64, 256)}
    rmap = Line((1, each[1]), (64, each[64]))
    shared = {n: row('ptshare', protect, n, against='without sharing')['ours'] for n in (1, 64, 256)}
    once = Line((1, shared[1]), (64, shared[64]))
    one = row('large', 'protect 1 GiB, one page in 2 MiB resident', 1, 'sharing')['ours']
    sixteen = row('large', 'protect 16 GiB, one page in 2 MiB resident', 1, 'sharing')['ours']
    whole = Line((1, one), (16, sixteen))
    resident = row('large', 'protect 1 GiB, resident', 1, 'sharing', 'mprotect')
    many = row('large', 'protect 1 GiB, resident', 256, 'sharing')['ours']
    sharers = Line((1, resident['ours']), (256, many))
    page = {n: row('ptshare', 'write-protect 1 page', n, against='without sharing')['ours'] for n in (1, 16, 64, 256)}
    page_line = Line((1, page[1]), (64, page[64]))
    mprotect = {n: row('protect', '64 MiB', n, against='mprotect')['theirs'] for n in (1, 16)}

    text = 'Laws, and a point that was not used for them                     law   measured\n'
    text += checked('page tables of 1 GiB, 1500 processes, without sharing', tables_off, 1500, off[1500], kb)
    text += checked('  sharing', tables_on, 1500, on[1500], kb)
    text += checked('protect 64 MiB, 256 processes, without sharing', rmap, 256, each[256], us)
    text += checked('  sharing', once, 256, shared[256], us)
    text += checked('protect 1 page, 256 processes, sharing', page_line, 256, page[256], us)
    text += (f'\nA process without sharing: {kb(tables_off.slope)} of tables for a GiB. mprotect() of a GiB: '
             f'{us(resident["theirs"])} in each;\n16 processes take {mprotect[16] / mprotect[1]:.1f} times what one '
             f'takes. One more process that shares: {1000 * page_line.slope:.0f} ns for each flush.\nOne more GiB that '
             f'is shared as a whole: {us(whole.slope)}; one more process that shares it: '
             f'{1000 * sharers.slope:.0f} ns.\n')
    for what, gib, clients in LARGE:
        top = 4 * -(-gib // 512)	# a table of the third level for each 512 GiB, in kB
        text += f'\n{what}\n'
        text += f'  {"":<44}{"without sharing":>18}{"sharing":>18}\n'
        text += (f'  {"page tables":<44}{kb(tables_off.slope * gib * clients + top * clients):>18}'
                 f'{kb(tables_on.at(1) * gib + top * (clients + 1)):>18}\n')
        text += (f'  {"work to protect all: mprotect(), one call":<44}{us(resident["theirs"] * gib * clients):>18}'
                 f'{us(whole.at(gib) + sharers.slope * clients):>18}\n')
        text += (f'  {"  that inode_lock() and i_mmap_rwsem are held":<44}{"":>18}'
                 f'{us(whole.at(gib) + sharers.slope * clients):>18}\n')
        text += f'  {"protect 1 page, nobody running":<44}{"":>18}{us(page_line.at(clients)):>18}\n'
    return text + processors()


def processors():
    """Interrupts, not time: what an interrupt takes is the machine's"""
    case, variant = 'reclaim of 64 MiB that N processes map', 'one runs on the other processor'
    flushes = row('reclaim', case, 64, variant, unit='flushes')
    interrupts = row('reclaim', case, 64, variant, unit='interrupts')
    text = '\n512 processors, all of which run a process that maps the file: interrupts\n'
    text += f'  {"":<44}{"without sharing":>18}{"sharing":>18}\n'
    text += (f'  {"reclaim of 64 MiB, one other (measured)":<44}{interrupts["theirs"]:>18.0f}{interrupts["ours"]:>18.0f}\n')
    text += (f'  {"  511 others":<44}{511 * interrupts["theirs"]:>18.0f}{511 * interrupts["ours"]:>18.0f}\n')
    text += f'  {"protect 1 page, or all: at most one flush":<44}{"":>18}{511:>18}\n'
    text += f'  (TLB flushes that the tracepoint told: {flushes["theirs"]:.0f} and {flushes["ours"]:.0f})\n'
    return text


if __name__ == '__main__':
    if sys.argv[1:] in (['-h'], ['--help']):
        print(__doc__.rstrip())
    elif len(sys.argv) > 1:
        print('model.py: takes no arguments; see --help', file=sys.stderr)
        sys.exit(2)
    else:
        print(model(), end='')
