//! A client whose words are all known in advance, and the export it talks to.

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};

use uzram::nbd::{Export, serve_stream};
use uzram::{Device, DeviceConfig};

/// Small enough that ranges are often inside it, with page numbers of more than one byte.
const SIZE: u64 = 2 << 20;

struct Recorded<'a> {
    said: &'a [u8],
    heard: Vec<u8>,
}

impl Read for Recorded<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.said.read(buf)
    }
}

impl Write for Recorded<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.heard.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Plays a client that says `said` and hangs up, to the real engine, empty at first; returns what
/// it heard.
pub fn play(said: &[u8]) -> Vec<u8> {
    static EXPORT: OnceLock<(Arc<Device>, Export)> = OnceLock::new();
    let (device, export) = EXPORT.get_or_init(|| {
        let device = Arc::new(Device::new(&DeviceConfig::new(SIZE)).expect("memory"));
        let export = Export {
            name: "disk".to_owned(),
            device: Arc::clone(&device) as _,
            read_only: false,
        };
        (device, export)
    });
    device.reset().expect("nobody uses it");
    let mut stream = Recorded {
        said,
        heard: Vec::new(),
    };
    // Any end will do but a panic or a hang.
    drop(serve_stream(&mut stream, export));
    device.check();
    stream.heard
}
