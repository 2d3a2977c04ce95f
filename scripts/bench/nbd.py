"""The NBD server against `nbdkit memory`, uncompressed and with its zstd allocator.

Over a Unix socket with one connection and with four, over TCP on the loopback, and over TLS. fio's
nbd engine is the client, but for TLS, where it is nbdcopy: fio cannot name certificates.
"""

import contextlib
import socket
import subprocess
import time
from pathlib import Path

import harness
from harness import OURS, Case

SIZE = "1G"
MALLOC, ZSTD, NULL = "nbdkit malloc", "nbdkit zstd", "nbdkit null"
NBDKIT = {
    MALLOC: ["memory", f"size={SIZE}", "allocator=malloc"],
    ZSTD: ["memory", f"size={SIZE}", "allocator=zstd"],
    NULL: ["null", f"size={SIZE}"],
}


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    with harness.scratch() as directory:
        for group in (unix, four_connections, tcp, tls):
            group(options, directory)
    print(f"\nraw figures and charts: {options.out}")


def unix(options, directory: Path) -> None:
    contenders = [OURS, MALLOC, ZSTD, NULL]
    with servers(options, directory, contenders) as uris:
        cases = [
            fio_case(uris, options, "4k randwrite, depth 32", "randwrite", "4k", 32, 1, {MALLOC: 0.8, ZSTD: 5}),
            fio_case(uris, options, "4k randread, depth 32", "randread", "4k", 32, 1, {MALLOC: 1.0}),
            fio_case(uris, options, "4k randwrite, depth 1", "randwrite", "4k", 1, 1, {MALLOC: 0.95}),
            fio_case(uris, options, "4k randread, depth 1", "randread", "4k", 1, 1, {MALLOC: 1.0}),
            fio_case(uris, options, "1M write, depth 4", "write", "1m", 4, 1, {ZSTD: 3}),
            fio_case(uris, options, "1M read, depth 4", "read", "1m", 4, 1, {ZSTD: 0.8}),
        ]
        compare("unix socket", cases, contenders, options)


def four_connections(options, directory: Path) -> None:
    contenders = [OURS, MALLOC, ZSTD]
    with servers(options, directory, contenders) as uris:
        cases = [
            fio_case(uris, options, "4k randwrite, 4 x 8", "randwrite", "4k", 8, 4, {}),
            fio_case(uris, options, "4k randread, 4 x 8", "randread", "4k", 8, 4, {}),
            fio_case(uris, options, "1M write, 4 x 1", "write", "1m", 1, 4, {}),
            fio_case(uris, options, "1M read, 4 x 1", "read", "1m", 1, 4, {}),
        ]
        compare("four connections", cases, contenders, options)


def tcp(options, directory: Path) -> None:
    contenders = [OURS, MALLOC, ZSTD]
    with servers(options, directory, contenders, over_tcp=True) as uris:
        cases = [
            fio_case(uris, options, "4k randwrite, depth 32", "randwrite", "4k", 32, 1, {}),
            fio_case(uris, options, "4k randread, depth 32", "randread", "4k", 32, 1, {}),
            fio_case(uris, options, "1M write, depth 4", "write", "1m", 4, 1, {}),
            fio_case(uris, options, "1M read, depth 4", "read", "1m", 4, 1, {}),
        ]
        compare("tcp loopback", cases, contenders, options)


def tls(options, directory: Path) -> None:
    # Debian's nbdkit 1.32 cuts off an nbdcopy that reads from its zstd allocator over TLS.
    contenders = [OURS, MALLOC]
    certificates = make_certificates(directory)
    image = directory / "image"
    megabytes = 128 if options.quick else 768
    write_image(image, megabytes)
    with servers(options, directory, contenders, certificates=certificates) as uris:

        def copy(source, destination):
            def timed(contender: str) -> float:
                begun = time.monotonic()
                names = [str(end(contender)) for end in (source, destination)]
                harness.run(["nbdcopy", "--connections=1", "--request-size=1048576", *names])
                return megabytes / (time.monotonic() - begun)

            return timed

        end = uris.__getitem__
        cases = [
            Case("nbdcopy in", "MiB/s", copy(lambda _: image, end)),
            Case("nbdcopy out", "MiB/s", copy(end, lambda _: "null:")),
        ]
        compare("tls", cases, contenders, options)


def compare(group: str, cases: list[Case], contenders: list[str], options) -> None:
    results = harness.measure(group, cases, contenders, options.rounds)
    harness.report(group, results, options.out)


def fio_case(uris, options, name, rw, bs, depth, jobs, targets) -> Case:
    small = bs == "4k"

    def run(contender: str) -> float:
        iops, mib = harness.fio(uris[contender], rw, bs, depth, jobs, options.seconds, SIZE)
        return iops if small else mib

    return Case(name, "IOPS" if small else "MiB/s", run, targets)


@contextlib.contextmanager
def servers(options, directory: Path, contenders, over_tcp=False, certificates=None):
    """All contenders' servers, their devices full of data; the URI of each."""
    with contextlib.ExitStack() as stack:
        uris = {}
        for number, contender in enumerate(contenders):
            where = directory / f"{number}.sock"
            # nbdkit leaves its socket behind.
            where.unlink(missing_ok=True)
            port = free_port() if over_tcp else None
            command, ready = server(options, contender, where, port, certificates)
            environment = {"UZRAM_RUNDIR": str(directory / "run"), "PATH": "/usr/sbin:/usr/bin:/bin"}
            stack.enter_context(
                harness.running(command, ready, env=environment, stderr=subprocess.DEVNULL)
            )
            if over_tcp:
                uris[contender] = f"nbd://127.0.0.1:{port}"
            elif certificates:
                uris[contender] = f"nbds+unix:///?socket={where}&tls-certificates={certificates}"
            else:
                uris[contender] = f"nbd+unix:///?socket={where}"
            if not certificates:
                harness.progress(f"filling {contender}")
                harness.fio(uris[contender], "write", "1m", 4, 1, 0, SIZE)
        yield uris


def server(options, contender: str, where: Path, port, certificates):
    """A contender's command, and how to tell that it is ready."""
    if contender == OURS:
        address = f"unix:{where}" if port is None else f"tcp:127.0.0.1:{port}"
        command = [str(options.uzram), "--quiet", "serve", "bench", f"--size={SIZE}", f"--nbd={address}"]
        if certificates:
            command += [f"--tls-certificates={certificates}", "--tls=require"]
    else:
        address = [f"--unix={where}"] if port is None else ["--ipaddr=127.0.0.1", f"--port={port}"]
        command = ["nbdkit", "--foreground", *address]
        if certificates:
            command += [f"--tls-certificates={certificates}", "--tls=require"]
        command += NBDKIT[contender]

    def ready() -> bool:
        try:
            if port is None:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(where))
            else:
                socket.create_connection(("127.0.0.1", port)).close()
            return True
        except OSError:
            return False

    return command, ready


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_certificates(directory: Path) -> Path:
    """A certificate that is its own authority, for the servers."""
    made = directory / "certificates"
    made.mkdir()
    certificate = made / "server-cert.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(made / "server-key.pem"), "-out", str(certificate)]
    harness.run(["openssl", "req", "-x509", *curve, *subject, *files])
    (made / "ca-cert.pem").write_bytes(certificate.read_bytes())
    return made


def write_image(path: Path, megabytes: int) -> None:
    """Real data: the programs and libraries of this machine, one after the other."""
    left = megabytes << 20
    with path.open("wb") as image:
        for source in sorted(Path("/usr").glob("lib/**/*.so*")) * 10:
            if left <= 0:
                break
            if source.is_file():
                data = source.read_bytes()[:left]
                image.write(data)
                left -= len(data)
        image.truncate(megabytes << 20)


main()
