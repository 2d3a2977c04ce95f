//! Files that hold a disk image rather than being one.
//!
//! A device serves the bytes of its image as they are. Of a qcow2 file those are its tables, and one
//! write to them ruins it; so a file that begins, or ends, as such a format does is refused unless
//! its owner says that it is raw.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image;

/// What the file of an image is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OriginFormat {
    /// A raw image, unless it is recognised as something else; that is refused.
    #[default]
    Detect,
    /// A raw image, whatever it looks like.
    Raw,
}

impl FromStr for OriginFormat {
    type Err = Error;

    /// Reads `detect` or `raw`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "detect" => Ok(Self::Detect),
            "raw" => Ok(Self::Raw),
            _ => Err(Error::InvalidConfig {
                option: "origin_format",
                reason: format!("{text:?} is not detect or raw"),
            }),
        }
    }
}

impl fmt::Display for OriginFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detect => "detect",
            Self::Raw => "raw",
        })
    }
}

/// Where a format has its magic.
#[derive(Clone, Copy, Debug)]
enum At {
    /// So many bytes from the start.
    Start(usize),
    /// In the last 512 bytes, at their start.
    Trailer,
}

use At::{Start, Trailer};

/// A format that is not raw.
#[derive(Debug)]
pub(super) struct Container {
    /// What a file of it is: "a qcow2 image".
    what: &'static str,
    /// The command that makes a raw image of it.
    remedy: &'static str,
    magic: At,
    bytes: &'static [u8],
}

const fn container(
    what: &'static str,
    remedy: &'static str,
    magic: At,
    bytes: &'static [u8],
) -> Container {
    Container {
        what,
        remedy,
        magic,
        bytes,
    }
}

const QEMU_IMG: &str = "qemu-img convert -O raw OLD NEW";

/// The formats that disk images are handed around in. Magics are those of QEMU's block drivers
/// (`block/*.c`), and of file(1).
const CONTAINERS: [Container; 25] = [
    container("a qcow2 image", QEMU_IMG, Start(0), b"QFI\xfb"),
    container("a QED image", QEMU_IMG, Start(0), b"QED\0"),
    container("a VMDK image", QEMU_IMG, Start(0), b"KDMV"),
    container("a VMDK image", QEMU_IMG, Start(0), b"COWD"),
    container(
        "the description of a VMDK image",
        QEMU_IMG,
        Start(0),
        b"# Disk DescriptorFile",
    ),
    container("a VDI image", QEMU_IMG, Start(0x40), b"\x7f\x10\xda\xbe"),
    container("a VHDX image", QEMU_IMG, Start(0), b"vhdxfile"),
    container("a VHD image", QEMU_IMG, Start(0), b"conectix"),
    container("a VHD image", QEMU_IMG, Trailer, b"conectix"),
    container("a Parallels image", QEMU_IMG, Start(0), b"WithoutFreeSpace"),
    container("a Parallels image", QEMU_IMG, Start(0), b"WithouFreSpacExt"),
    container("an Apple disk image", QEMU_IMG, Trailer, b"koly"),
    container(
        "an Android sparse image",
        "simg2img OLD NEW",
        Start(0),
        b"\x3a\xff\x26\xed",
    ),
    container(
        "an EnCase image",
        "ewfexport -f raw OLD",
        Start(0),
        b"EVF\x09\x0d\x0a\xff\0",
    ),
    container(
        "a partclone image",
        "partclone.restore --restore_raw_file -s OLD -O NEW",
        Start(0),
        b"partclone-image",
    ),
    container(
        "an image that uzram save wrote",
        "`Device::restore`",
        Start(0),
        &image::MAGIC,
    ),
    container("gzip data", "gzip -dk OLD", Start(0), b"\x1f\x8b\x08"),
    container("xz data", "xz -dk OLD", Start(0), b"\xfd7zXZ\0"),
    container("zstd data", "zstd -d OLD", Start(0), b"\x28\xb5\x2f\xfd"),
    container("bzip2 data", "bzip2 -dk OLD", Start(4), b"1AY&SY"),
    container("lz4 data", "lz4 -d OLD NEW", Start(0), b"\x04\x22\x4d\x18"),
    container("lzip data", "lzip -dk OLD", Start(0), b"LZIP"),
    container("a ZIP archive", "unzip OLD", Start(0), b"PK\x03\x04"),
    container(
        "a 7-Zip archive",
        "7z x OLD",
        Start(0),
        b"7z\xbc\xaf\x27\x1c",
    ),
    container("a tar archive", "tar -xf OLD", Start(0x101), b"ustar"),
];

/// The bytes from the start in which every magic lies that is there.
const HEAD: usize = 512;

/// The bytes of a trailer.
const TRAILER: usize = 512;

impl Container {
    /// What `file`, of `len` bytes, is in, as far as it tells; `None` of a raw image.
    ///
    /// # Errors
    /// The kernel's, to a read.
    pub(super) fn of(file: &File, len: u64) -> io::Result<Option<&'static Self>> {
        let mut head = [0; HEAD];
        let read = usize::try_from(len).map_or(HEAD, |len| len.min(HEAD));
        file.read_exact_at(&mut head[..read], 0)?;
        let mut trailer = [0; TRAILER];
        if let Some(at) = len.checked_sub(TRAILER as u64) {
            file.read_exact_at(&mut trailer, at)?;
        }
        Ok(CONTAINERS.iter().find(|it| it.is_in(&head, &trailer)))
    }

    fn is_in(&self, head: &[u8; HEAD], trailer: &[u8; TRAILER]) -> bool {
        match self.magic {
            Start(at) => head[at..].starts_with(self.bytes),
            Trailer => trailer.starts_with(self.bytes),
        }
    }

    /// Why it is refused, and what to do.
    pub(super) fn refusal(&self) -> String {
        let Self { what, remedy, .. } = self;
        format!(
            "holds {what}, not a raw image: run {remedy}, or serve its bytes as they are with \
             `OriginFormat::Raw`"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn found(bytes: &[u8]) -> Option<&'static Container> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        Container::of(&file, bytes.len() as u64).expect("read")
    }

    #[test]
    fn each_format_is_told_from_a_raw_image() {
        for container in &CONTAINERS {
            let mut bytes = vec![0xe5; 8192];
            let at = match container.magic {
                Start(at) => at,
                Trailer => bytes.len() - TRAILER,
            };
            bytes[at..at + container.bytes.len()].copy_from_slice(container.bytes);
            let what = found(&bytes).map(|found| found.what);
            assert_eq!(what, Some(container.what));
            // One byte further on it is somebody's data.
            bytes.insert(at, 0xe5);
            bytes.truncate(8192);
            assert!(found(&bytes).is_none(), "{}", container.what);
        }
    }

    #[test]
    fn a_raw_image_is_one_however_short() {
        for len in [0, 1, 3, 511, 512, 513, 4096] {
            assert!(found(&vec![0; len]).is_none(), "{len}");
            assert!(found(&vec![0xff; len]).is_none(), "{len}");
        }
        assert!(found(b"QFI\xfb").is_some());
        assert!(found(b"QFI").is_none());
    }

    #[test]
    fn a_format_reads_as_it_is_shown() {
        for text in ["detect", "raw"] {
            assert_eq!(text.parse::<OriginFormat>().expect("one").to_string(), text);
        }
        assert!("qcow2".parse::<OriginFormat>().is_err());
    }
}
