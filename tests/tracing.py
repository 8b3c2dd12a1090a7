# SPDX-License-Identifier: GPL-2.0-only
"""What tests/tracing traces, and the comparison with what the tools said of it.

A program that does something writes what it did to standard output, as JSON; to
compare, that is in /tmp/did and what the tool printed in /tmp/tool.
"""
import ctypes, fcntl, json, mmap, os, re, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

PAGE, BLOCK = 4096, 2 << 20
ALLOW_PROTECT, SHARE_PGTABLES = 0x00100000, 0x00200000
WAIT, ASYNC, DENY = 0, 1, 2
MADV_HUGEPAGE = 14
SCAN, RESOLVE = 0xC0304D02, 0x40104D01


def syscall(*args):
    ret = libc.syscall(*[ctypes.c_long(a) for a in args])
    if ret < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ret


def create(size, flags):
    fd = os.memfd_create('traced', flags)
    os.ftruncate(fd, size)
    return fd, os.fstat(fd).st_ino


def protect(fd, page, pages, mode):
    syscall(548, fd, page * PAGE, pages * PAGE, mmap.PROT_READ, mode)


def scan(notify_fd, take, ranges=16):
    """Returns the pages of the ranges that a scan tells, and how many ranges."""
    array = ctypes.create_string_buffer(16 * ranges)
    arg = bytearray(struct.pack('=QQQQQQ', 0, 0, ctypes.addressof(array), ranges, take, 0))
    nr = fcntl.ioctl(notify_fd, SCAN, arg)
    pairs = struct.unpack('=%dQ' % (2 * nr), array.raw[:16 * nr])
    return sum(pairs[1::2]) // PAGE, nr


def did(**what):
    print(json.dumps(dict(what, pid=os.getpid())))


def do_write():
    fd, ino = create(16 * PAGE, ALLOW_PROTECT)
    notify_fd = syscall(549, fd, 0)
    memory = mmap.mmap(fd, 16 * PAGE)
    protect(fd, 0, 8, ASYNC)
    protect(fd, 8, 8, DENY)
    expected = []
    for page in (1, 4, 6):
        memory[page * PAGE] = 1
        memory[page * PAGE + 1] = 1     # logged already: not caught
        expected.append(('store', 'async', page * PAGE, PAGE))
    os.pwrite(fd, b'x', 2 * PAGE + 5)
    expected.append(('write', 'async', 2 * PAGE, PAGE))
    for name, call in (('write', lambda: os.pwrite(fd, b'x', 9 * PAGE + 5)),
                       ('punch', lambda: punch(fd, 10 * PAGE, 2 * PAGE)),
                       ('truncate', lambda: os.ftruncate(fd, 12 * PAGE))):
        try:
            call()
            sys.exit(f'{name} was not refused')
        except PermissionError:
            pass
    expected += [('write', 'deny', 9 * PAGE, PAGE), ('punch', 'deny', 10 * PAGE, 2 * PAGE),
                 ('truncate', 'deny', 12 * PAGE, None)]
    did(ino=ino, lines=expected)


def punch(fd, offset, length):
    if libc.fallocate(fd, 3, offset, length):
        raise OSError(ctypes.get_errno() or 1, 'fallocate')


def compare_write(done, text):
    lines = []
    for line in text.splitlines():
        w = line.split()
        if len(w) == 9 and w[2] == str(done['pid']) and w[6] == str(done['ino']):
            lines.append((w[1], w[3], w[4], w[5], int(w[7]), int(w[8])))
    print(lines)
    assert len(lines) == len(done['lines']), 'number of lines'
    for (comm, kind, mode, kernel, offset, length), want in zip(lines, done['lines']):
        assert (comm, kernel) == ('python3', 'no'), comm + kernel
        assert [kind, mode, offset] == want[:3], want
        assert want[3] in (None, length), want


def do_scan():
    fd, ino = create(64 * PAGE, ALLOW_PROTECT)
    notify_fd = syscall(549, fd, 0)
    memory = mmap.mmap(fd, 64 * PAGE)
    protect(fd, 0, 64, ASYNC)
    pages = ranges = scans = 0
    for group in ((1, 2, 3, 7), (5,), (), tuple(range(20, 50))):
        for page in group:
            memory[page * PAGE] = 1
        looked = scan(notify_fd, 0)
        taken = scan(notify_fd, 1)
        if looked != taken or taken[0] != len(group):
            sys.exit(f'{group}: {looked} {taken}')
        pages, ranges, scans = pages + taken[0], ranges + taken[1], scans + 1
        time.sleep(0.7)
    did(ino=ino, kib=4 * pages, ranges=ranges, scans=scans)


def compare_scan(done, text):
    """The seconds add up to the whole."""
    for what in ('kib', 'ranges', 'scans'):
        parts = [int(v) for v in re.findall(rf'^@{what}\[{done["ino"]}\]: (\d+)$', text, re.M)]
        whole = [int(v) for v in re.findall(rf'^@all_{what}\[{done["ino"]}\]: (\d+)$', text, re.M)]
        print(what, parts, whole)
        assert len(parts) >= 2, 'one line for each second'
        # bpftrace prints and clears a map in two steps; what comes between is not shown.
        assert 0 < sum(parts) <= done[what] and whole == [done[what]], done


def do_wait():
    fd, _ = create(8 * PAGE, ALLOW_PROTECT)
    notify_fd = syscall(549, fd, 0)
    protect(fd, 0, 8, WAIT)
    pid = os.fork()
    if not pid:
        for page in range(5):
            os.pwrite(fd, b'x', page * PAGE)
        os._exit(0)
    for _ in range(5):
        event = os.read(notify_fd, 64)
        time.sleep(0.05)
        cookie = struct.unpack_from('=Q', event, 8)[0]
        fcntl.ioctl(notify_fd, RESOLVE, struct.pack('=QII', cookie, 0, 0))
    os.waitpid(pid, 0)
    did(child=pid, waits=5)


def compare_wait(done, text):
    found = re.search(rf'^@waits\[python3, {done["child"]}\]: (\d+)$', text, re.M)
    longest = re.search(rf'^@longest_us\[python3, {done["child"]}\]: (\d+)$', text, re.M)
    assert found and int(found[1]) == done['waits'], found
    assert longest and int(longest[1]) >= 50000, longest
    assert '@failed' not in text


def vmstat():
    return {k: int(v) for k, v in (line.split() for line in open('/proc/vmstat'))}


def touch(addr, length, step=BLOCK):
    for at in range(addr, addr + length, step):
        ctypes.c_char.from_address(at).value = b'x'


def do_link():
    before = vmstat()
    fd, _ = create(8 * BLOCK, SHARE_PGTABLES)
    size = 8 * BLOCK
    addr = libc.mmap(None, size, 3, 1, fd, 0)
    touch(addr, size)
    children = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            touch(addr, size)
            os._exit(0)
        os.waitpid(pid, 0)
        children.append(pid)
    # Cut in the middle of a block; a class of its own; two things that cannot be shared
    assert not libc.mprotect(addr + PAGE, PAGE, mmap.PROT_READ)
    assert not libc.mprotect(addr + 2 * BLOCK, BLOCK, mmap.PROT_READ)
    assert not libc.mprotect(addr + 4 * BLOCK, BLOCK, 0)
    assert not libc.madvise(addr + 6 * BLOCK, BLOCK, MADV_HUGEPAGE)
    assert not libc.munmap(addr, size)
    os.close(fd)
    # Tables are freed before a system call returns, or soon after.
    time.sleep(0.5)
    after = vmstat()
    did(children=children, **{k: after['ptshare_' + k] - before['ptshare_' + k]
                              for k in ('link', 'unlink', 'unshare')})


def compare_link(done, text):
    links = {int(p): int(v) for p, v in re.findall(r'^@links\[\S+, (\d+)\]: (\d+)$', text, re.M)}
    def table(name):
        return {(int(p), r): int(v) for p, r, v in
                re.findall(rf'^@{name}\[\S+, (\d+), (\w+)\]: (\d+)$', text, re.M)}
    unlinks, unshares = table('unlinks'), table('unshares')
    print(done, links, unlinks, unshares)
    pid = done['pid']
    assert set(links) == {pid, *done['children']}, 'who links'
    assert sum(links.values()) == done['link'], 'links'
    assert sum(unlinks.values()) == done['unlink'], 'unlinks'
    assert sum(unshares.values()) == done['unshare'], 'unshares'
    for child in done['children']:
        assert unlinks.get((child, 'unmap')) == links[child], 'a child ends'
    assert {r for p, r in unlinks if p == pid} >= {'unmap', 'split', 'class', 'access', 'hugepage'}
    # mprotect() and madvise() split the mapping at both ends before, at boundaries
    assert unshares[pid, 'access'] == 1 and unshares[pid, 'hugepage'] == 1, 'reasons'
    assert unshares[pid, 'split'] == 1, 'cut'
    assert re.search(r'^@freed: [1-9]', text, re.M), 'tables are freed'
    assert re.search(r'^@flushes:', text, re.M), 'flushes'


what = sys.argv[1]
if what.startswith('compare-'):
    globals()['compare_' + what[8:]](json.load(open('/tmp/did')), open('/tmp/tool').read())
else:
    globals()['do_' + what]()
