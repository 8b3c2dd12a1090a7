# SPDX-License-Identifier: GPL-2.0-only
"""Uses shared memory in each way that `memfdctl run` replaces, and checks what POSIX says.

It must succeed in both cases: as it is, and under `memfdctl run`, where with the
argument "memfd" all of it must be in memfds.  Whatever differs is a bug of the latter.
"""
import ctypes, errno, mmap, os, resource, signal, struct, sys, time

libc = ctypes.CDLL(None, use_errno=True)
for name in ('mmap', 'shmat', 'mremap'):
    getattr(libc, name).restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
libc.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
MiB = 1 << 20
FAILED = ctypes.c_void_p(-1).value
IPC_RMID, IPC_SET, IPC_STAT, SHM_LOCK, SHM_UNLOCK = 0, 1, 2, 11, 12
CREAT, EXCL = 0o1000, 0o2000
RDONLY, RND, REMAP = 0o10000, 0o20000, 0o40000
memfds = sys.argv[1:] == ['memfd']


def error(call, *args):
    """The error that a call fails with, 0 if it does not."""
    ctypes.set_errno(0)
    ret = call(*args)
    return ctypes.get_errno() if ret in (-1, FAILED) else 0


def get(addr):
    return ctypes.c_ubyte.from_address(addr).value


def put(addr, value):
    ctypes.c_ubyte.from_address(addr).value = value


def in_child(function, ends=0):
    pid = os.fork()
    if not pid:
        try:
            function()
            os._exit(0)
        except BaseException as e:
            print('child:', repr(e), file=sys.stderr)
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status == ends, status


def backing(addr):
    """What is mapped at an address, by /proc/self/maps."""
    for line in open('/proc/self/maps'):
        word = line.split(None, 5)
        start, end = (int(x, 16) for x in word[0].split('-'))
        if start <= addr < end:
            return word[5].strip() if len(word) > 5 else ''
    return None


def is_memfd(addr, big=True):
    assert backing(addr).startswith('/memfd:') == (memfds and big), backing(addr)


def descriptors():
    return len(os.listdir('/proc/self/fd'))


def anonymous():
    def new(size, how=0x21):
        return libc.mmap(None, size, 3, how, -1, 0)
    before = descriptors()
    small, private, big = new(MiB), new(4 * MiB, 0x22), new(5 * MiB)
    is_memfd(small, False)
    is_memfd(private, False)
    is_memfd(big)
    assert get(big) == 0 and get(big + 5 * MiB - 1) == 0
    put(big + 5 * MiB - 1, 9)
    def child():
        assert get(big + 5 * MiB - 1) == 9
        put(big, 3)
        assert not libc.munmap(big, 5 * MiB)
    in_child(child)
    assert get(big) == 3
    # In parts, from both ends and the middle
    for at, size in ((0, 1), (4, 1), (2, 1), (1, 1)):
        assert not libc.munmap(big + at * MiB, size * MiB)
        assert get(big + 3 * MiB) == 0
    assert not libc.munmap(big + 3 * MiB, MiB)
    assert descriptors() == before, 'a descriptor is left'
    # Moved, and shorter then
    big = new(6 * MiB)
    put(big, 5)
    moved = libc.mremap(big, 6 * MiB, 4 * MiB, 1, None)
    assert get(moved) == 5
    far = libc.mmap(None, 16 * MiB, 0, 0x22, -1, 0)
    assert libc.mremap(moved, 4 * MiB, 4 * MiB, 3, far) == far
    assert get(far) == 5
    assert not libc.munmap(far, 16 * MiB)
    assert descriptors() == before, 'a descriptor is left of what was moved'
    # Something else is mapped over it.
    big = new(4 * MiB)
    over = libc.mmap(big, 4 * MiB, 3, 0x32, -1, 0)
    assert over == big and get(big) == 0 and descriptors() == before
    # The program closes all descriptors, and has others at these numbers.
    big = new(4 * MiB)
    put(big, 6)
    theirs = max(int(fd) for fd in os.listdir('/proc/self/fd')) if memfds else 800
    assert not memfds or os.readlink(f'/proc/self/fd/{theirs}').startswith('/memfd:')
    os.closerange(3, 4096)
    os.dup2(os.open('/dev/null', os.O_RDONLY), theirs)
    assert get(big) == 6 and not libc.munmap(big, 4 * MiB)
    os.fstat(theirs)
    os.closerange(3, 4096)
    # More of them than there may be descriptors
    many = [new(2 * MiB) for _ in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0] + 10)] \
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 4096 else []
    assert FAILED not in many
    os.close(os.open('/dev/null', os.O_RDONLY))
    for addr in many:
        assert not libc.munmap(addr, 2 * MiB)
    assert descriptors() == before
    for _ in range(1000):
        big = new(2 * MiB)
        assert big != FAILED
        libc.munmap(big, 2 * MiB)


def shm_open():
    def open_(name, flags, mode=0o600):
        fd = libc.shm_open(name, flags, mode)
        return fd if fd >= 0 else -ctypes.get_errno()
    name, rw, create = b'/run-test', os.O_RDWR, os.O_RDWR | os.O_CREAT
    assert open_(name, rw) == -errno.ENOENT
    assert open_(b'/a/b', create) == -errno.EINVAL and open_(b'/', create) == -errno.EINVAL
    old = os.umask(0o027)
    fd = open_(name, create | os.O_EXCL, 0o666)
    os.umask(old)
    assert fd >= 0 and os.fstat(fd).st_size == 0
    assert os.fstat(fd).st_mode & 0o777 == 0o640, oct(os.fstat(fd).st_mode)
    assert os.get_inheritable(fd) is False
    os.ftruncate(fd, 3 * MiB)
    addr = libc.mmap(None, 3 * MiB, 3, 1, fd, 0)
    is_memfd(addr)
    put(addr + 7, 7)
    def child():
        assert open_(name, create | os.O_EXCL) == -errno.EEXIST
        other = open_(name, rw)
        assert os.fstat(other).st_ino == os.fstat(fd).st_ino
        assert os.pread(other, 1, 7) == b'\x07'
        assert os.lseek(other, 0, os.SEEK_CUR) == 0
        os.pwrite(other, b'x', 8)
        reader = open_(name, os.O_RDONLY)
        try:
            os.write(reader, b'x')
            assert False
        except OSError as e:
            assert e.errno == errno.EBADF
        assert error(libc.mmap, None, 4096, 3, 1, reader, 0) == errno.EACCES
    in_child(child)
    assert get(addr + 8) == ord('x')
    def stranger():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        assert open_(name, rw) == -errno.EACCES and open_(name, os.O_RDONLY) == -errno.EACCES
        assert error(libc.shm_unlink, name) == errno.EACCES
    if not os.getuid():
        in_child(stranger)
    assert os.fstat(open_(name, rw | os.O_TRUNC)).st_size == 0
    assert not libc.shm_unlink(name) and error(libc.shm_unlink, name) == errno.ENOENT
    assert open_(name, rw) == -errno.ENOENT
    os.ftruncate(fd, 3 * MiB)
    put(addr, 1)
    # One without the right to write it, for who makes it
    fd = open_(name, create | os.O_EXCL, 0o400)
    assert fd >= 0 and os.ftruncate(fd, MiB) is None
    assert not libc.shm_unlink(name)
    # One that is there already is used.
    with open('/dev/shm/was-there', 'wb') as f:
        f.write(b'old')
    assert os.pread(open_(b'/was-there', create), 3, 0) == b'old'
    assert open_(b'/was-there', create | os.O_EXCL) == -errno.EEXIST
    assert not libc.shm_unlink(b'/was-there') and not os.path.exists('/dev/shm/was-there')


class Status:
    """struct shmid_ds"""
    def __init__(self, id):
        buf = ctypes.create_string_buffer(112)
        assert not libc.shmctl(id, IPC_STAT, buf), ctypes.get_errno()
        (self.key, self.uid, self.gid, self.cuid, self.cgid, self.mode) = \
            struct.unpack_from('=iIIIIH', buf, 0)
        self.size, self.atime, self.dtime, self.ctime = struct.unpack_from('=QQQQ', buf, 48)
        self.cpid, self.lpid, self.attached = struct.unpack_from('=iiQ', buf, 80)
        self.buf = buf


def sysv():
    key = 0x4d454d46
    assert error(libc.shmget, key, 4 * MiB, 0o600) == errno.ENOENT
    id = libc.shmget(key, 4 * MiB + 1, CREAT | EXCL | 0o640)
    assert id >= 0
    assert error(libc.shmget, key, 4 * MiB, CREAT | EXCL | 0o600) == errno.EEXIST
    assert error(libc.shmget, key, 8 * MiB, CREAT | EXCL | 0o600) == errno.EEXIST
    assert error(libc.shmget, key, 8 * MiB, 0o600) == errno.EINVAL
    assert libc.shmget(key, 0, 0) == id and libc.shmget(key, MiB, CREAT | 0o600) == id
    s = Status(id)
    assert (s.key, s.size, s.mode & 0o777, s.attached) == (key, 4 * MiB + 1, 0o640, 0), vars(s)
    assert s.uid == os.getuid() and s.cpid == os.getpid() and s.atime == 0 and s.ctime
    addr = libc.shmat(id, None, 0)
    is_memfd(addr + 4096)
    put(addr + 4 * MiB, 5)
    reader = libc.shmat(id, None, RDONLY)
    assert reader != addr and get(reader + 4 * MiB) == 5
    assert Status(id).attached == 2 and Status(id).lpid == os.getpid() and Status(id).atime
    for at in (0, 4 * MiB):
        in_child(lambda: put(reader + at, 1), ends=signal.SIGSEGV)
    def child():
        assert Status(id).attached == 4
        assert get(addr + 4 * MiB) == 5
        put(addr, 6)
        assert not libc.shmdt(addr)
        assert Status(id).attached == 3
        assert error(libc.shmdt, addr) == errno.EINVAL
    in_child(child)
    # A child ends without detaching.
    assert get(addr) == 6 and Status(id).attached == 2
    assert error(libc.shmat, id, addr + 1, 0) == errno.EINVAL
    assert error(libc.shmat, id, addr, 0) == errno.EINVAL
    assert error(libc.shmat, id, None, REMAP) == errno.EINVAL
    hole = libc.mmap(None, 16 * MiB, 0, 0x22, -1, 0)
    assert error(libc.shmat, id, hole, 0) == errno.EINVAL
    assert libc.shmat(id, hole + 5, RND | REMAP) == hole and get(hole) == 6
    assert not libc.shmdt(hole) and not libc.shmdt(reader)
    if not os.getuid():
        def stranger():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            assert error(libc.shmat, id, None, 0) == errno.EACCES
            assert error(libc.shmget, key, 0, 0o600) == errno.EACCES
            assert error(libc.shmctl, id, IPC_RMID, None) == errno.EPERM
        in_child(stranger)
        s = Status(id)
        struct.pack_into('=I', s.buf, 4, 65534)
        struct.pack_into('=H', s.buf, 20, 0o600)
        assert not libc.shmctl(id, IPC_SET, s.buf)
        s = Status(id)
        assert s.uid == 65534 and s.cuid == 0 and s.mode & 0o777 == 0o600, vars(s)
        def owner():
            os.setgid(65534)
            os.setuid(65534)
            assert get(libc.shmat(id, None, 0)) == 6
        in_child(owner)
        assert not libc.shmctl(id, SHM_LOCK, None) and not libc.shmctl(id, SHM_UNLOCK, None)
    # Removed, it stays while it is attached, and has no key.
    assert not libc.shmctl(id, IPC_RMID, None)
    assert error(libc.shmget, key, 0, 0o600) == errno.ENOENT
    s = Status(id)
    assert s.mode & 0o1000 and s.attached == 1 and s.key == 0, vars(s)
    other = libc.shmget(key, 4 * MiB, CREAT | 0o600)
    assert other >= 0 and other != id
    assert get(addr) == 6
    assert not libc.shmdt(addr)
    assert error(libc.shmctl, id, IPC_STAT, ctypes.create_string_buffer(112)) in (errno.EINVAL, errno.EIDRM)
    assert error(libc.shmat, id, None, 0) in (errno.EINVAL, errno.EIDRM)
    assert not libc.shmctl(other, IPC_RMID, None)
    # Who is first, of several at once?
    for _ in range(50):
        start, (read, write) = time.monotonic() + 0.02, os.pipe()
        children = []
        for _ in range(4):
            pid = os.fork()
            if not pid:
                while time.monotonic() < start:
                    pass
                os.write(write, b'%c' % (0 if error(libc.shmget, key, 4 * MiB, CREAT | EXCL | 0o600) else 1))
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        assert sum(os.read(read, 4)) == 1, 'one of them is the first'
        os.close(read)
        os.close(write)
        assert not libc.shmctl(libc.shmget(key, 0, 0), IPC_RMID, None)
    # IPC_PRIVATE is always new; small ones are the kernel's.
    a, b, small = (libc.shmget(0, size, CREAT | 0o600) for size in (2 * MiB, 2 * MiB, 4096))
    assert len({a, b, small}) == 3
    addr = libc.shmat(small, None, 0)
    is_memfd(addr, False)
    for id in (a, b, small):
        assert not libc.shmctl(id, IPC_RMID, None)
    assert not libc.shmdt(addr)


def memfd():
    fd = os.memfd_create('own', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * MiB)
    assert libc.syscall(548, ctypes.c_long(fd), 0, 0, 3, 0) == (0 if memfds else -1)


def after_exec():
    """A program that is executed has it too."""
    if os.environ.get('SHARED_MEMORY_CHILD'):
        return
    assert os.spawnvpe(os.P_WAIT, sys.executable, [sys.executable, *sys.argv],
                       dict(os.environ, SHARED_MEMORY_CHILD='1')) == 0


def handlers_and_threads():
    """Memory is mapped in a signal handler, and by threads, while others do so and fork."""
    import threading
    def both(*_):
        addr = libc.mmap(None, 2 * MiB, 3, 0x21, -1, 0)
        assert addr != FAILED and not libc.munmap(addr, 2 * MiB)
    def alarm(*_):
        both()
        # Not before: on a slow machine handlers would only interrupt each other.
        signal.setitimer(signal.ITIMER_REAL, 0.001)
    kept = libc.mmap(None, 2 * MiB, 3, 0x21, -1, 0)
    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    def work():
        for _ in range(100):
            both()
            id = libc.shmget(0, 2 * MiB, CREAT | 0o600)
            addr = libc.shmat(id, None, 0)
            assert not libc.shmctl(id, IPC_RMID, None)
            put(addr + MiB, 1)
            assert not libc.shmdt(addr), ctypes.get_errno()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for _ in range(20):
        in_child(both)
    for t in threads:
        t.join()
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert not libc.munmap(kept, 2 * MiB)


def file_size_limit():
    """Anonymous memory is no file."""
    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MiB, MiB))
        assert libc.mmap(None, 8 * MiB, 3, 0x21, -1, 0) != FAILED
        assert libc.shmget(0, 8 * MiB, CREAT | 0o600) >= 0
        assert libc.shmctl(libc.shmget(0, 8 * MiB, CREAT | 0o600), IPC_RMID, None) == 0
    in_child(child)


for test in (anonymous, shm_open, sysv, memfd, handlers_and_threads, file_size_limit, after_exec):
    test()
    print('fine:', test.__name__)
