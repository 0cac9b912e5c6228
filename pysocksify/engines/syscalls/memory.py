"""Reading and writing the memory of a target's thread, by thread id.

process_vm_readv(2) needs no descriptor that could outlive an exec, or a vfork()ed child's end, and then read
something else. Where it isn't to be had (some sandboxes answer ENOSYS, root in a container may not use it on another
user's program), /proc/TID/mem does, opened anew for each access. What was read is only valid once the notification is
known to be still waiting: the thread id may be another thread's by then.
"""

import ctypes
import errno
import os
import struct

from pysocksify.engines.syscalls import abi
from pysocksify.linux import looked_into, syscall

MOST = 1 << 20  # bytes read at once; a larger write of a program is taken in several parts
SOCKADDR_MOST = 128  # sizeof(struct sockaddr_storage): longer is EINVAL (move_addr_to_kernel() in net/socket.c)
IOV_MOST = 1024  # UIO_MAXIOV; also the most messages of one sendmmsg() or recvmmsg()

INT = struct.Struct("=i")
IOVEC = struct.Struct("=QQ")
# struct msghdr (recvmsg(2)): name, namelen, iov, iovlen, control, controllen, flags; struct mmsghdr has msg_len behind
MSGHDR = struct.Struct("=QI4xQQQQi4x")


class Memory:
    """Access to targets' memory for one supervisor; not thread-safe, since its buffers are used again."""

    def __init__(self, arch: abi.Architecture) -> None:
        self._readv, self._writev = arch.process_vm_readv, arch.process_vm_writev
        self._small = ctypes.create_string_buffer(256)
        self._small_address = ctypes.addressof(self._small)
        # two struct iovec: local and remote
        self._iov = (ctypes.c_uint64 * 4)()
        self._local = ctypes.addressof(self._iov)
        self._remote = self._local + 16
        self._by_file = False

    def read(self, tid: int, address: int, size: int) -> bytes:
        """`size` bytes at `address`. OSError: EFAULT when they aren't all readable, EPERM, ESRCH."""
        if size == 0:
            return b""
        if self._by_file:
            return self._read_file(tid, address, size)
        if size <= 256:
            buffer, local = self._small, self._small_address
        else:
            buffer = ctypes.create_string_buffer(size)
            local = ctypes.addressof(buffer)
        iov = self._iov
        iov[0], iov[1], iov[2], iov[3] = local, size, address, size
        try:
            got = syscall(self._readv, tid, self._local, 1, self._remote, 1, 0)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            self._by_file = self._by_file or error.errno == errno.ENOSYS
            return self._read_file(tid, address, size)
        if got != size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return ctypes.string_at(local, size)

    def iovecs(self, tid: int, address: int, count: int) -> list[tuple[int, int]]:
        """The bases and sizes of an array of struct iovec. OSError: EMSGSIZE, and as for `read`."""
        if count > IOV_MOST:
            raise OSError(errno.EMSGSIZE, "number of buffers")
        return list(IOVEC.iter_unpack(self.read(tid, address, count * IOVEC.size)))

    def write(self, tid: int, address: int, data: bytes) -> None:
        """Put `data` at `address`. OSError: EFAULT when it isn't all writable, EPERM, ESRCH."""
        if not data:
            return
        if self._by_file:
            self._write_file(tid, address, data)
            return
        buffer = ctypes.create_string_buffer(data, len(data))
        iov = self._iov
        iov[0], iov[1], iov[2], iov[3] = ctypes.addressof(buffer), len(data), address, len(data)
        try:
            put = syscall(self._writev, tid, self._local, 1, self._remote, 1, 0)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            self._by_file = self._by_file or error.errno == errno.ENOSYS
            self._write_file(tid, address, data)
            return
        if put != len(data):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def _read_file(self, tid: int, address: int, size: int) -> bytes:
        fd = _open(tid, os.O_RDONLY)
        try:
            data = os.pread(fd, size, address)
        except (OSError, OverflowError) as error:
            raise _fault(error) from None
        finally:
            os.close(fd)
        if len(data) != size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def _write_file(self, tid: int, address: int, data: bytes) -> None:
        fd = _open(tid, os.O_WRONLY)
        try:
            put = os.pwrite(fd, data, address)
        except (OSError, OverflowError) as error:
            raise _fault(error) from None
        finally:
            os.close(fd)
        if put != len(data):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def _open(tid: int, flags: int) -> int:
    try:
        return looked_into(tid, lambda: os.open(f"/proc/{tid}/mem", flags))
    except PermissionError as error:  # as the other way says it
        raise OSError(errno.EPERM, os.strerror(errno.EPERM)) from error


def _fault(error: OSError | OverflowError) -> OSError:
    """What the other way would have said: EIO is for what isn't mapped, an overflow for the kernel's own half."""
    if isinstance(error, OSError) and error.errno != errno.EIO:
        return error
    return OSError(errno.EFAULT, os.strerror(errno.EFAULT))
