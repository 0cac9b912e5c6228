"""Numbers and structures of notifications: seccomp_unotify(2), linux/seccomp.h."""

import errno
import fcntl
import struct

FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5  # Linux 5.19

IOCTL_NOTIF_RECV = 0xC0502100
IOCTL_NOTIF_SEND = 0xC0182101
IOCTL_NOTIF_ID_VALID = 0x40082102
IOCTL_NOTIF_ADDFD = 0x40182103
IOCTL_NOTIF_SET_FLAGS = 0x40082104  # Linux 6.6
USER_NOTIF_FD_SYNC_WAKE_UP = 1
USER_NOTIF_FLAG_CONTINUE = 1
ADDFD_FLAG_SETFD = 1
ADDFD_FLAG_SEND = 2  # Linux 5.14

# struct seccomp_notif: id, pid, flags, then struct seccomp_data: nr, arch, instruction_pointer, args[6]
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
# struct seccomp_notif_resp: id, val, error, flags
RESPONSE = struct.Struct("=QqiI")
# struct seccomp_notif_addfd: id, flags, srcfd, newfd, newfd_flags
ADDFD = struct.Struct("=QIIII")


def receive(fd: int) -> bytearray | None:
    """The struct seccomp_notif that is next; None: its caller is gone meanwhile. Waits if there's none. OSError."""
    buffer = bytearray(NOTIFICATION.size)  # of zeros: the kernel insists
    try:
        fcntl.ioctl(fd, IOCTL_NOTIF_RECV, buffer)
    except OSError as failure:
        if failure.errno not in (errno.ENOENT, errno.EINTR):
            raise
        return None
    return buffer
