#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What is in the shared buffers of PostgreSQL 15, by offsets of its shared memory.

  pg_snapshot.py range             where the buffers are, as options of memfdctl
  pg_snapshot.py writers FILE      who wants to write which tables: FILE is the output of
                                   memfdctl --json watch
  pg_snapshot.py dirty FILE        which tables were written: memfdctl --json scan
  pg_snapshot.py check FILE LSN    whether the pages in a snapshot of the memory are pages:
                                   memfdctl snapshot.  LSN: when the server was started.
                                   Pages that were not changed since have the checksum with
                                   which they were read. (It writes others with another one,
                                   which it does not keep in the buffer.)

The server has to be running: it tells where the buffers are (pg_shmem_allocations), the
names of tables, and by its extension pageinspect what the checksum of a page should be.
"""
import collections, json, os, struct, subprocess, sys

PAGE = 8192
DESCRIPTOR = 64         # BufferDesc, padded to a cache line
PINS = (1 << 18) - 1     # how many processes use the buffer
DIRTY, VALID, TAG_VALID = 1 << 23, 1 << 24, 1 << 25
MOST_CHECKSUMS = 2000   # that the server is asked for
FORKS = ('', ' (fsm)', ' (vm)', ' (init)')


def sql(query):
    out = subprocess.run(['psql', '-qAtX', '-F', '\t', '-c', query], check=True, text=True,
                         stdout=subprocess.PIPE).stdout
    return [line.split('\t') for line in out.splitlines()]


def allocation(name):
    (offset, size), = sql(f"select off, size from pg_shmem_allocations where name = '{name}'")
    return int(offset), int(size)


def tables():
    """Names by the number of the file."""
    return {int(node): name for node, name in
            sql('select pg_relation_filenode(oid), relname from pg_class '
                'where pg_relation_filenode(oid) is not null')}


def buffer_tables():
    """What the server has in each buffer now, by the buffer's number from 0 on."""
    names = tables()
    return {int(number) - 1: names.get(int(node), 'another database') + FORKS[int(fork)]
            for number, node, fork in sql('select bufferid, relfilenode, relforknumber '
                                          'from pg_buffercache where relfilenode is not null')}


def place(offset, start, size, of_buffer):
    """What is at an offset of the shared memory."""
    if not start <= offset < start + size:
        return None
    return of_buffer.get((offset - start) // PAGE, 'a free buffer')


def print_range():
    start, size = allocation('Buffer Blocks')
    first = -(-start // 4096) * 4096
    print(f'-o {first} -l {(start + size) // 4096 * 4096 - first}')


def print_counts(counts, head):
    for what, n in counts.most_common(8):
        print(f'{n:8}  {what}')
    if len(counts) > 8:
        print(f'{sum(counts.values()) - sum(n for _, n in counts.most_common(8)):8}  others')
    if not counts:
        sys.exit(f'{head}: nothing')


def writers(path):
    start, size = allocation('Buffer Blocks')
    of_buffer = buffer_tables()
    counts = collections.Counter()
    for line in open(path):
        event = json.loads(line)
        where = place(event['offset'], start, size, of_buffer) or "the server's own memory"
        counts[f"{event['comm']} {event['pid']}: {where}"] += 1
    print_counts(counts, 'writes')


def dirty(path):
    start, size = allocation('Buffer Blocks')
    of_buffer = buffer_tables()
    counts = collections.Counter()
    for line in open(path):
        written = json.loads(line)
        for offset in range(written['offset'], written['offset'] + written['length'], 4096):
            where = place(offset, start, size, of_buffer) or "the server's own memory"
            counts[f'pages of 4 KiB: {where}'] += 1
    print_counts(counts, 'written')


def lsn(text):
    high, low = text.split('/')
    return int(high, 16) << 32 | int(low, 16)


def check_page(page, number):
    """Its LSN, its checksum; None if it has never been used. Fails if it is no page."""
    high, low, checksum, flags, lower, upper, special, version = struct.unpack_from('=IIHHHHHH', page)
    if not any(page[:24]):
        return None
    if version != PAGE + 4 or flags & ~7 or not 24 <= lower <= upper <= special <= PAGE:
        sys.exit(f'buffer {number}: this is no page: {page[:24].hex()}')
    return high << 32 | low, checksum


def checksums(path, pages):
    """Compares those of pages, as (number of block, offset in the file, checksum)."""
    values = ','.join(f'({block},{offset},{checksum})' for block, offset, checksum in pages)
    wrong = sql(f'select block, page_checksum(pg_read_binary_file(\'{path}\', place, {PAGE}), block), want '
                f'from (values {values}) as v(block, place, want) '
                f'where page_checksum(pg_read_binary_file(\'{path}\', place, {PAGE}), block)::int '
                f'& 65535 <> want')
    if wrong:
        sys.exit(f'checksums are wrong: {wrong[:5]}')


def check(path, before):
    blocks, size = allocation('Buffer Blocks')
    descriptors, _ = allocation('Buffer Descriptors')
    names, limit = tables(), lsn(before)
    counts, unchanged, changed = collections.Counter(), [], 0
    with open(path, 'rb') as f:
        for number in range(size // PAGE):
            f.seek(descriptors + number * DESCRIPTOR)
            _, _, node, fork, block, buf_id, state = struct.unpack('=IIIiIiI', f.read(28))
            if buf_id != number:
                sys.exit(f'descriptor {number} says that it is {buf_id}')
            if not (state & VALID and state & TAG_VALID):
                continue
            offset = blocks + number * PAGE
            f.seek(offset)
            header = check_page(f.read(PAGE), number)
            counts[names.get(node, 'catalogs of all databases, and others') + FORKS[fork]] += 1
            # Who uses it may have changed it, and not have said so yet.
            if header and not state & (DIRTY | PINS) and header[0] < limit and header[1]:
                unchanged.append((block, offset, header[1]))
            else:
                changed += 1
    print(f'{sum(counts.values())} pages in the snapshot, each with a sound header:')
    print_counts(counts, 'pages')
    sample = unchanged[::len(unchanged) // MOST_CHECKSUMS + 1]
    if not sample:
        sys.exit('no page has a checksum that could be compared')
    checksums(os.path.abspath(path), sample)
    print(f'{len(sample)} of {len(unchanged)} pages that nobody had written have the checksum that '
          f'they should; {changed} had been written')


if sys.argv[1:] == ['range']:
    print_range()
elif len(sys.argv) == 3 and sys.argv[1] in ('writers', 'dirty'):
    globals()[sys.argv[1]](sys.argv[2])
elif len(sys.argv) == 4 and sys.argv[1] == 'check':
    check(*sys.argv[2:])
else:
    print(__doc__.strip(), file=sys.stderr)
    sys.exit(2)
