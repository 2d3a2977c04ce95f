//! Which sectors suit what is on a device.
//!
//! A block device with large sectors is quicker, but what came to be on small ones may not be usable
//! on it: a file system may have smaller blocks, and a partition table counts in sectors without
//! saying how large they are. So, the first of these that has an answer: what is on the disk; what the
//! device was attached with last; and then, large ones if it is blank, small ones if it is not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use uzram::{Attribute, SectorSize};

use crate::runtime::client;
use crate::runtime::rundir::RunDir;
use crate::runtime::signature::Signature;

/// What a disk says of the sectors that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// These.
    Sectors(SectorSize),
    /// There is nothing on it.
    Blank,
    /// Nothing: a container, or what nobody knows.
    Nothing,
}

/// The sectors for `disk`, the device of `dir`.
pub(crate) fn choose(disk: &Path, dir: &RunDir) -> Result<SectorSize> {
    Ok(decide(said_by(disk), remembered(dir)?))
}

/// The sectors of a device that is blank.
pub(crate) fn for_blank(dir: &RunDir) -> Result<SectorSize> {
    Ok(decide(Said::Blank, remembered(dir)?))
}

fn decide(said: Said, remembered: Option<SectorSize>) -> SectorSize {
    match (said, remembered) {
        (Said::Sectors(size), _) | (_, Some(size)) => size,
        (Said::Blank, None) => SectorSize::Page,
        (Said::Nothing, None) => SectorSize::Least,
    }
}

/// What the device of `dir` was attached with last.
fn remembered(dir: &RunDir) -> Result<Option<SectorSize>> {
    let mut client = client::connect(dir)?;
    let bytes = client.get(Attribute::SectorSize.name())?;
    Ok(bytes.trim().parse().ok().and_then(SectorSize::of_bytes))
}

/// Has the device of `dir` remember what it is attached with.
pub(crate) fn remember(dir: &RunDir, size: SectorSize) -> Result<()> {
    let mut client = client::connect(dir)?;
    client.set(Attribute::SectorSize.name(), &size.to_string())?;
    Ok(())
}

fn said_by(disk: &Path) -> Said {
    // First, as what was read of a device counts as data of it.
    if is_blank(disk) {
        return Said::Blank;
    }
    if let Some(size) = of_gpt(disk) {
        return Said::Sectors(size);
    }
    let found = Signature::of(disk);
    if let Some(size) = of_file_system(&found) {
        return Said::Sectors(size);
    }
    let of_partitions = match found.value("PTTYPE") {
        Some("dos") => of_mbr(disk),
        _ => None,
    };
    of_partitions.map_or(Said::Nothing, Said::Sectors)
}

/// What a file system needs, by its smallest blocks, or sectors of its own.
fn of_file_system(found: &Signature) -> Option<SectorSize> {
    if found.value("USAGE") != Some("filesystem") {
        return None;
    }
    let bytes: u32 = found.value("BLOCK_SIZE")?.parse().ok()?;
    Some(match bytes < SectorSize::Page.bytes() {
        true => SectorSize::Least,
        false => SectorSize::Page,
    })
}

/// What the header of a GPT, in the second sector, or its copy, in the last one, is found with (UEFI
/// specification, 5.3.2).
fn of_gpt(disk: &Path) -> Option<SectorSize> {
    const MAGIC: &[u8] = b"EFI PART";
    /// Where a header has the number of its own sector.
    const OWN: usize = 24;
    let disk = File::open(disk).ok()?;
    let len = rustix::fs::seek(&disk, SeekFrom::End(0)).ok()?;
    let is_at = |sector: u64, size: u64| {
        let mut header = [0; OWN + size_of::<u64>()];
        let read = disk.read_exact_at(&mut header, sector * size);
        read.is_ok() && header.starts_with(MAGIC) && header[OWN..] == sector.to_le_bytes()
    };
    let has = |size: &SectorSize, is_copy: bool| {
        let size = u64::from(size.bytes());
        let sectors = len / size;
        sectors > 1 && is_at(if is_copy { sectors - 1 } else { 1 }, size)
    };
    [false, true].into_iter().find_map(|is_copy| {
        let mut found = SectorSize::ALL
            .into_iter()
            .filter(|size| has(size, is_copy));
        // Of two of them one is old, and which is not known.
        match (found.next(), found.next()) {
            (Some(size), None) => Some(size),
            _ => None,
        }
    })
}

/// A partition of an MBR, in sectors.
struct Partition {
    start: u64,
    end: u64,
}

/// What the partitions of an MBR are known to begin, or to end, with.
fn of_mbr(disk: &Path) -> Option<SectorSize> {
    let (partitions, len) = partitions(disk)?;
    let fits = |size: &SectorSize| {
        let bytes = u64::from(size.bytes());
        partitions.iter().all(|part| part.end * bytes <= len)
    };
    if !fits(&SectorSize::Page) {
        return Some(SectorSize::Least);
    }
    let begins = |size: &SectorSize| {
        let bytes = u64::from(size.bytes());
        let known = |part: &Partition| Signature::from(disk, part.start * bytes);
        let mut starts = partitions.iter().map(known);
        starts.any(|found| matches!(found, Signature::Known(_)))
    };
    let mut found = SectorSize::ALL.into_iter().filter(begins);
    match (found.next(), found.next()) {
        (Some(size), None) => Some(size),
        _ => None,
    }
}

/// The partitions in the first sector of a disk, and the bytes of the disk.
fn partitions(disk: &Path) -> Option<(Vec<Partition>, u64)> {
    const ENTRIES: usize = 446;
    const ENTRY: usize = 16;
    let disk = File::open(disk).ok()?;
    let len = rustix::fs::seek(&disk, SeekFrom::End(0)).ok()?;
    let mut sector = [0; SectorSize::Least.bytes() as usize];
    disk.read_exact_at(&mut sector, 0).ok()?;
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let partitions = sector[ENTRIES..].chunks_exact(ENTRY).filter_map(|entry| {
        let (start, sectors) = (number(&entry[8..12]), number(&entry[12..16]));
        (entry[4] != 0 && sectors != 0).then_some(Partition {
            start,
            end: start + sectors,
        })
    });
    Some((partitions.collect(), len))
}

/// Whether there is nothing on a disk, as far as it tells.
fn is_blank(disk: &Path) -> bool {
    let data = File::open(disk).map(|disk| rustix::fs::seek(&disk, SeekFrom::Data(0)));
    matches!(data, Ok(Err(Errno::NXIO)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const LEN: u64 = 8 << 20;

    /// Bytes, and where they are.
    type Parts<'a> = &'a [(u64, &'a [u8])];

    /// A sparse disk with some bytes in their places.
    fn disk(parts: Parts<'_>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(LEN).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        (dir, path)
    }

    fn gpt_header(sector: u64) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[24..32].copy_from_slice(&sector.to_le_bytes());
        header
    }

    fn mbr(start: u32, sectors: u32) -> Vec<u8> {
        let mut sector = vec![0; 512];
        sector[450] = 0x83;
        sector[454..458].copy_from_slice(&start.to_le_bytes());
        sector[458..462].copy_from_slice(&sectors.to_le_bytes());
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    /// The superblock of an ext2 of so many blocks of 1024 << `shift` bytes, and where it is.
    fn ext2(shift: u8) -> (u64, Vec<u8>) {
        let mut block = vec![0; 1024];
        block[0] = 16;
        block[4..6].copy_from_slice(&[0, 4]);
        block[24] = shift;
        block[32..36].copy_from_slice(&8192_u32.to_le_bytes());
        block[40..44].copy_from_slice(&16_u32.to_le_bytes());
        block[56..58].copy_from_slice(&[0x53, 0xef]);
        block[76] = 1;
        block[88] = 128;
        (1024, block)
    }

    const LEAST: Said = Said::Sectors(SectorSize::Least);
    const PAGE: Said = Said::Sectors(SectorSize::Page);

    #[test]
    fn what_is_on_a_disk_says_what_it_needs() {
        let (last_small, last_large) = (LEN / 512 - 1, LEN / 4096 - 1);
        let (small, large) = (gpt_header(1), gpt_header(1));
        let (small_copy, large_copy) = (gpt_header(last_small), gpt_header(last_large));
        let misplaced = gpt_header(7);
        let (whole, beyond) = (mbr(256, 1024), mbr(256, LEN as u32 / 512 - 256));
        let ((at, fine), (_, coarse)) = (ext2(0), ext2(2));
        let in_page = 256 * 4096 + at;
        let in_least = 256 * 512 + at;
        let luks = [b"LUKS\xba\xbe\0\x01".as_slice(), &[0; 584]].concat();
        let lvm = {
            // `LABELONE` in the second sector, its checksum left out: what blkid does not take for
            // one is data of a kind that nobody knows.
            let mut label = b"LABELONE".to_vec();
            label.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0]);
            label.extend(b"LVM2 001");
            label
        };
        let cases: [(Parts<'_>, Said); 16] = [
            (&[], Said::Blank),
            (&[(4 << 20, b"data")], Said::Nothing),
            (&[(512, &small)], LEAST),
            (&[(4096, &large)], PAGE),
            (&[(512, &small), (4096, &large)], Said::Nothing),
            (&[(last_small * 512, &small_copy)], LEAST),
            (&[(last_large * 4096, &large_copy)], PAGE),
            // The copy is where the other size has no sector's start.
            (&[(512, &misplaced)], Said::Nothing),
            (&[(0, &whole)], Said::Nothing),
            (&[(0, &beyond)], LEAST),
            (&[(0, &whole), (in_page, &coarse)], PAGE),
            (&[(0, &whole), (in_least, &coarse)], LEAST),
            (&[(at, &fine)], LEAST),
            (&[(at, &coarse)], PAGE),
            (&[(0, &luks)], Said::Nothing),
            (&[(512, &lvm)], Said::Nothing),
        ];
        for (number, (parts, said)) in cases.into_iter().enumerate() {
            let (_dir, path) = disk(parts);
            assert_eq!(said_by(&path), said, "{number}");
        }
        let (_dir, path) = disk(&[]);
        fs::remove_file(&path).unwrap();
        assert_eq!(said_by(&path), Said::Nothing);
    }

    #[test]
    fn what_is_there_goes_before_what_was_and_that_before_a_guess() {
        let (least, page) = (SectorSize::Least, SectorSize::Page);
        for remembered in [None, Some(least), Some(page)] {
            assert_eq!(decide(LEAST, remembered), least);
            assert_eq!(decide(PAGE, remembered), page);
            assert_eq!(decide(Said::Blank, remembered), remembered.unwrap_or(page));
            assert_eq!(
                decide(Said::Nothing, remembered),
                remembered.unwrap_or(least)
            );
        }
    }
}
