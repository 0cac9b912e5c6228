"""The virtual machines that `scripts/kernels` runs tests in: Debian's kernels in qemu, without KVM, on this very root.

The guest sees this machine's whole file system over 9p, read-only, with memory laid over it (guest/init), and runs
pytest in it (guest/session). Its clock counts its own instructions (qemu's -icount), one nanosecond each, so a test's
time limits mean the same there as on hardware, however slow the emulation is and whatever else this machine does.
"""

import argparse
import ctypes
import lzma
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pysocksify.program import kind

REPOSITORY = Path(__file__).parent.parent
GUEST = REPOSITORY / "scripts" / "guest"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pysocksify" / "kernels"
VERSIONS = ("6.1", "6.12")
SUITES = ("tests/conformance", "tests/e2e", "tests/engines", "tests/supervisor")
TEST_LIMIT = 600  # seconds, by the guest's clock: ten times what pyproject.toml gives a test
SILENCE = 1800.0  # seconds without a word from the guest until it's given up
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
APPLETS = ("sh", "mount", "umount", "mkdir", "insmod", "switch_root")
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}
FRESH = ("/tmp", "/var/tmp")  # empty in the guest, unless something that it needs is there
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
PR_SET_PDEATHSIG = 1
NO_ANSWER = 3  # exit status without one of pytest's; pytest's own for an internal error


class Trouble(Exception):
    """What keeps a run from being made; its text is for the person."""


class Kernel:
    """An unpacked kernel package: its release as uname(2) says it, the image, and the folder of modules."""

    def __init__(self, folder: Path) -> None:
        images = sorted(folder.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise Trouble(f"{folder}: not one boot/vmlinuz-* but {len(images)}")
        self.image = images[0]
        self.release = self.image.name.removeprefix("vmlinuz-")
        found = [path for path in (folder / "lib/modules", folder / "usr/lib/modules") if path.is_dir()]
        if not found or not (found[0] / self.release).is_dir():
            raise Trouble(f"{folder}: no modules for {self.release}")
        self.modules = found[0] / self.release
        self._base = found[0].parents[1]
        if not (self.modules / "modules.dep").exists():
            output("depmod", "-b", str(self._base), self.release)

    def needed(self, names: Sequence[str]) -> list[Path]:
        """The files of these modules and of those they need, in the order to load them; what is built in has none."""
        paths: dict[Path, None] = {}
        for name in names:
            for line in output(
                "modprobe", "-d", str(self._base), "-S", self.release, "--show-depends", name
            ).splitlines():
                kind, _, path = line.strip().partition(" ")
                if kind == "insmod":
                    paths[Path(path.split()[0])] = None
        return list(paths)


def output(*command: str, folder: Path | None = None) -> str:
    """What a command prints. Trouble: it failed."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env={**os.environ, "PATH": PATH, "LC_ALL": "C"},
    )
    if done.returncode:
        raise Trouble(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def newest(version: str) -> str:
    """The name of the newest package that has this kernel, by what APT knows."""
    pattern = rf"linux-image-{re.escape(version)}\.[0-9][0-9.+a-z~-]*-amd64"
    names = re.findall(rf"^({pattern})$", output("apt-cache", "pkgnames", f"linux-image-{version}."), re.MULTILINE)
    plain = [name for name in names if not re.search(r"-(cloud|rt)-amd64$", name)]
    if not plain:
        raise Trouble(f"APT knows no linux-image-{version}.…-amd64: run apt-get update, with Debian 12's sources")
    found: list[tuple[list[int], str]] = []
    for name in plain:
        words = [int(word) for word in re.findall(r"\d+", name.removesuffix("-amd64"))]
        found.append((words, name))
    return max(found)[1]


def package(version: str) -> Path:
    """The package file of a kernel, downloaded if it isn't here yet."""
    name = newest(version)
    debs = CACHE / "packages"
    debs.mkdir(parents=True, exist_ok=True)
    have = sorted(debs.glob(f"{name}_*.deb"))
    if not have:
        print(f"downloading {name}", flush=True)
        output("apt-get", "download", "-q", name, folder=debs)
        have = sorted(debs.glob(f"{name}_*.deb"))
    return have[-1]


def unpacked(file: Path) -> Kernel:
    """The kernel of a package file."""
    folder = CACHE / file.stem
    if not folder.exists():
        print(f"unpacking {file.name}", flush=True)
        partial = Path(tempfile.mkdtemp(prefix="unpacking-", dir=CACHE))
        try:
            output("dpkg-deb", "-x", str(file), str(partial))
            partial.chmod(0o755)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Kernel(folder)


def kernel(name: str) -> Kernel:
    """The kernel that the command line names: a version of Debian's, a package file, or a folder with one unpacked."""
    if name in VERSIONS:
        return unpacked(package(name))
    path = Path(name)
    if path.is_dir():
        return Kernel(path.resolve())
    if path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        return unpacked(path.resolve())
    raise Trouble(f"{name}: neither {' nor '.join(VERSIONS)}, nor a package or a folder")


def member(name: str, mode: int, content: bytes) -> bytes:
    """One member of an archive as the kernel unpacks it: cpio's "newc" (driver-api/early-userspace/buffer-format)."""
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def initramfs(chosen: Kernel) -> bytes:
    """The guest's first root: busybox, the modules for 9p and overlay, and guest/init."""
    busybox = shutil.which("busybox", path=PATH)
    if busybox is None or kind(busybox).dynamic:
        raise Trouble("busybox is linked dynamically; as root on Debian: apt-get install busybox-static")
    modules: dict[str, bytes] = {}
    for path in chosen.needed(MODULES):
        data = path.read_bytes()
        if path.suffix == ".xz":
            data, path = lzma.decompress(data), path.with_suffix("")
        modules[path.name] = data
    folders = ("bin", "dev", "proc", "sys", "modules", "machine", "memory", "root")
    parts = [member(name, 0o040755, b"") for name in folders]
    parts.append(member("bin/busybox", 0o100755, Path(busybox).read_bytes()))
    parts += [member(f"bin/{name}", 0o120777, b"busybox") for name in APPLETS]
    parts += [member(f"modules/{name}", 0o100644, data) for name, data in modules.items()]
    parts.append(member("modules/order", 0o100644, "".join(f"{name}\n" for name in modules).encode()))
    parts.append(member("init", 0o100755, (GUEST / "init").read_bytes()))
    parts.append(member("TRAILER!!!", 0, b""))
    return b"".join(parts)


def machine(chosen: Kernel, exchange: Path) -> list[str]:
    """qemu's command line."""
    return [
        *("qemu-system-x86_64", "-no-user-config", "-nodefaults", "-no-reboot", "-display", "none"),
        # one processor: with two and -icount, qemu 7.2 hung in the boot
        *("-accel", "tcg,thread=single", "-icount", "shift=0", "-rtc", "clock=vm"),
        *("-cpu", "max", "-m", "3072"),
        *("-kernel", str(chosen.image), "-initrd", str(exchange / "initramfs")),
        *("-append", "console=ttyS0 loglevel=5 panic=-1"),
        *("-serial", f"file:{exchange / 'console'}", "-chardev", "stdio,id=words,signal=off"),
        *("-device", "isa-serial,chardev=words"),
        *("-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine"),
        *("-fsdev", f"local,id=exchange,path={exchange},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=exchange,mount_tag=exchange"),
    ]


def ends_with_parent() -> None:
    """The calling process is killed when its parent ends: prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def running(command: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that doesn't outlive the block."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PATH": PATH},
        preexec_fn=ends_with_parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def show(process: "subprocess.Popen[bytes]") -> bool:
    """Prints what the guest writes until it has turned itself off; False when it has been silent for too long."""
    assert process.stdout is not None
    while select.select([process.stdout], [], [], SILENCE)[0]:
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            return True
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return False


def run(chosen: Kernel, arguments: Sequence[str]) -> int:
    """Runs pytest under a kernel; its exit status, NO_ANSWER if the guest gave none."""
    with tempfile.TemporaryDirectory(prefix="pysocksify-kernels-", dir=CACHE) as folder:
        exchange = Path(folder)
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", f"timeout={TEST_LIMIT}", *arguments]
        shutil.copy(GUEST / "session", exchange)
        (exchange / "initramfs").write_bytes(initramfs(chosen))
        (exchange / "modules").write_text(f"{chosen.modules}\n")
        used = (REPOSITORY, CACHE, Path(sys.executable), Path(sys.base_prefix))
        fresh = [name for name in FRESH if not any(path.is_relative_to(name) for path in used)]
        (exchange / "fresh").write_text("".join(f"{name}\n" for name in fresh))
        (exchange / "command").write_text(f"cd {shlex.quote(str(REPOSITORY))} && exec {shlex.join(pytest)}\n")
        print(f"Linux {chosen.release}", flush=True)
        with running(machine(chosen, exchange)) as process:
            ended = show(process)
        status = exchange / "status"
        if ended and status.exists():
            return int(status.read_text())
        reason = "has ended without a result" if ended else f"was silent for {SILENCE:.0f} s"
        console = (exchange / "console").read_text(errors="replace").splitlines()
        print(f"the guest {reason}; its console's last lines:", *console[-20:], sep="\n")
        return NO_ANSWER


def lacking() -> str:
    """What keeps this machine from running guests at all; "" when nothing does."""
    if os.uname().machine != "x86_64":
        return "the guest runs this machine's own programs, so it must be an x86-64 one"
    packages = sorted({name for tool, name in TOOLS.items() if shutil.which(tool, path=PATH) is None})
    return f"missing; as root on Debian: apt-get install {' '.join(packages)}" if packages else ""


def names_tests(word: str) -> bool:
    """Whether a word of pytest's command line is a file, a folder or a test in one."""
    return not word.startswith("-") and (REPOSITORY / word.partition("::")[0]).exists()


def run_each(names: Sequence[str], arguments: Sequence[str]) -> int:
    """Runs pytest under one kernel after the other; the first exit status that isn't 0. Trouble: it can't be done."""
    if reason := lacking():
        raise Trouble(reason)
    if not any(map(names_tests, arguments)):
        arguments = [*(suite for suite in SUITES if (REPOSITORY / suite).is_dir()), *arguments]
    compiled = ("pysocksify", "tests")  # the guest would do it again and again, and much slower
    output(sys.executable, "-m", "compileall", "-q", *compiled, folder=REPOSITORY)
    statuses = [run(kernel(name), arguments) for name in names]
    return next((status for status in statuses if status), 0)


def main() -> int:
    """Runs the tests under each kernel asked for; pytest's exit status."""
    versions = "|".join((*VERSIONS, "PATH"))
    parser = argparse.ArgumentParser(
        prog="scripts/kernels",
        usage=f"scripts/kernels [--kernel {versions}]… [pytest arguments…]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--kernel",
        action="append",
        metavar=versions,
        help="Debian's newest package of this version, a package file, or a folder with one unpacked (all of Debian's)",
    )
    options, arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run_each(options.kernel or VERSIONS, arguments)
    except Trouble as trouble:
        print(f"scripts/kernels: {trouble}", file=sys.stderr)
        return NO_ANSWER
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
