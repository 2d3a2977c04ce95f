//! Whatever comes over the control socket: each line is answered with a line of JSON, and the
//! server goes on.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use uzram::control::{Client, Server};
use uzram::{BlockDevice, Device, DeviceConfig};

struct Served {
    socket: PathBuf,
    _server: Server,
    _dir: tempfile::TempDir,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let device = Arc::new(Device::new(&DeviceConfig::new(1 << 20)).expect("a device"));
    device.write(0, &[7; 5000]).expect("there is room");
    let socket = dir.path().join("control.sock");
    Served {
        _server: Server::start(&socket, device).expect("the server starts"),
        socket,
        _dir: dir,
    }
});

fuzz_target!(|input: &[u8]| {
    // Files anywhere on this machine are nothing to try things out on.
    if input.windows(11).any(|name| name == b"backing_dev") {
        return;
    }
    let served = &*SERVED;
    let mut stream = UnixStream::connect(&served.socket).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    // It may hang up before it has read all.
    let _ = stream.write_all(input).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut heard = Vec::new();
    if stream.read_to_end(&mut heard).is_ok() {
        for line in heard.split_inclusive(|&byte| byte == b'\n') {
            assert!(line.starts_with(b"{\"ok\":") || line.starts_with(b"{\"error\":"), "{line:?}");
            assert!(line.ends_with(b"}\n"), "{line:?}");
        }
    }
    let mut client = Client::connect(&served.socket, Duration::from_secs(10)).expect("connects");
    client.stat().expect("the server goes on");
});
