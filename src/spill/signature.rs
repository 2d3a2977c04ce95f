//! What file systems, volumes and partition tables are told by, and where it lies. Only enough to
//! name what is about to be lost: that nothing of it is found does not make a disk empty.
//!
//! Most leave the first sector alone, so what was spilled there before may still be in front of
//! them. Marks of two bytes are therefore taken for one only beside other fields: they also occur in
//! one of so many spills.

use std::io;

/// Bytes at the start of a disk that are looked at, and at its end.
const START: u64 = 260 << 10;
const END: u64 = 128 << 10;

/// Magic bytes at an offset.
type Magic = (&'static str, usize, &'static [u8]);

/// Magic bytes from the start: magic(5), and the formats' own documents.
const AT_START: &[Magic] = &[
    ("an XFS file system", 0, b"XFSB"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("a squashfs", 0, b"hsqs"),
    ("a Ceph OSD", 0, b"bluestore block device"),
    ("an Oracle ASM disk", 32, b"ORCLDISK"),
    ("an APFS container", 32, b"NXSB"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("a FAT file system", 54, b"FAT1"),
    ("a FAT file system", 82, b"FAT32"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a Stratis pool", 516, b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an EROFS file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("an HFS+ file system", 1024, b"H+\0\x04"),
    ("an HFS+ file system", 1024, b"HX\0\x05"),
    (
        "a NILFS2 file system",
        1024,
        &[2, 0, 0, 0, 0, 0, 0x34, 0x34],
    ),
    ("an OCFS2 file system", 1024, b"OCFSV2"),
    ("an OCFS2 file system", 2048, b"OCFSV2"),
    ("an OCFS2 file system", 4096, b"OCFSV2"),
    ("an OCFS2 file system", 8192, b"OCFSV2"),
    ("a RAID member", 0, &MD),
    ("a RAID member", 4096, &MD),
    (
        "bcache",
        4120,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    (
        "a bcachefs file system",
        4120,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
    ),
    ("a JFS file system", 32 << 10, b"JFS1"),
    ("an ISO 9660 file system", 32_769, b"CD001"),
    ("a UDF file system", 32_769, b"BEA01"),
    ("a btrfs file system", 65_600, b"_BHRfS_M"),
    ("a ReiserFS", 65_588, b"ReIsEr"),
    ("a GFS2 file system", 65_536, &[1, 0x16, 0x19, 0x70]),
];

/// Linux RAID, little-endian.
const MD: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();

/// What ends the first page of a swap area, whatever the size of a page.
const SWAP: [&[u8]; 5] = [
    b"SWAPSPACE2",
    b"SWAP-SPACE",
    b"S1SUSPEND\0",
    b"S2SUSPEND\0",
    b"ULSUSPEND\0",
];

/// What is on a disk or in a file of `len` bytes, if it is any of these; `read` fills a buffer from a
/// byte on.
///
/// # Errors
/// Those of `read`.
pub(super) fn find(
    len: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<Option<&'static str>> {
    let mut part = |from: u64, bytes: u64| {
        let mut part = vec![0; bytes as usize];
        read(from, &mut part)?;
        io::Result::Ok(part)
    };
    if let Some(name) = at_start(&part(0, START.min(len))?) {
        return Ok(Some(name));
    }
    let from = len.saturating_sub(END) / 4096 * 4096;
    Ok(at_end(&part(from, len - from)?, len, from))
}

fn at_start(start: &[u8]) -> Option<&'static str> {
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|all| all.starts_with(magic));
    let of_table = AT_START.iter().find(|(_, at, magic)| has(*at, magic));
    let is_swap = || {
        let pages = [4096, 8192, 16 << 10, 64 << 10].into_iter();
        pages
            .into_iter()
            .any(|page| SWAP.iter().any(|magic| has(page - 10, magic)))
    };
    let is_zfs = || {
        let uberblocks = (128 << 10..256 << 10).step_by(1024);
        let magic = 0x00ba_b10c_u64;
        uberblocks
            .into_iter()
            .any(|at| has(at, &magic.to_le_bytes()) || has(at, &magic.to_be_bytes()))
    };
    if let Some((name, ..)) = of_table {
        return Some(name);
    }
    [
        ("an ext2, ext3 or ext4 file system", is_ext(start)),
        ("a swap area", is_swap()),
        ("a ZFS pool", is_zfs()),
        // Last: file systems have one too, for what starts from them.
        ("a partition table", is_mbr(start)),
    ]
    .into_iter()
    .find_map(|(name, is)| is.then_some(name))
}

/// The superblock's magic, a block size and a revision that there are.
fn is_ext(start: &[u8]) -> bool {
    let Some(superblock) = start.get(1024..1024 + 1024) else {
        return false;
    };
    let word = |at: usize| {
        let bytes = superblock[at..at + 4].first_chunk();
        u32::from_le_bytes(*bytes.unwrap_or(&[0xff; 4]))
    };
    superblock[56..58] == [0x53, 0xef] && word(24) <= 6 && word(76) <= 1 && word(0) > 0
}

/// The boot signature and four partitions that are each bootable or not.
fn is_mbr(start: &[u8]) -> bool {
    let Some(sector) = start.get(..512) else {
        return false;
    };
    let mut entries = sector[446..510].chunks_exact(16);
    let used = |entry: &[u8]| entry[4] != 0;
    let is_any_used = entries.clone().any(used);
    sector[510..] == [0x55, 0xaa]
        && is_any_used
        && entries.all(|entry| matches!(entry[0], 0 | 0x80))
}

/// `end` is what is from byte `from` on of a disk of `len` bytes.
fn at_end(end: &[u8], len: u64, from: u64) -> Option<&'static str> {
    let has = |at: u64, magic: &[u8]| {
        let at = at.checked_sub(from).and_then(|at| end.get(at as usize..));
        at.is_some_and(|all| all.starts_with(magic))
    };
    let last_sector = |bytes: u64| len.saturating_sub(bytes) / bytes * bytes;
    if has(last_sector(512), b"EFI PART") || has(last_sector(4096), b"EFI PART") {
        return Some("the second header of a GPT partition table");
    }
    let old = (len / (64 << 10) * (64 << 10)).saturating_sub(64 << 10);
    let new = len.saturating_sub(8192) / 4096 * 4096;
    (has(old, &MD) || has(new, &MD)).then_some("a RAID member")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(disk: &[u8]) -> Option<&'static str> {
        let read = |at: u64, buf: &mut [u8]| {
            buf.copy_from_slice(&disk[at as usize..][..buf.len()]);
            Ok(())
        };
        find(disk.len() as u64, read).expect("reads")
    }

    #[test]
    fn marks_are_found_where_they_belong_and_nowhere_else() {
        for (name, at, magic) in AT_START {
            let mut disk = vec![0; 4 << 20];
            disk[*at..*at + magic.len()].copy_from_slice(magic);
            assert_eq!(found(&disk), Some(*name));
            disk.copy_within(*at..*at + magic.len(), 1 << 20);
            disk[*at..*at + magic.len()].fill(0);
            assert_eq!(found(&disk), None, "{name}");
        }
        let size: usize = (4 << 20) + 512 * 7;
        for (name, at, magic) in [
            ("a swap area", 4086, &b"SWAPSPACE2"[..]),
            ("a swap area", 65_526, b"S1SUSPEND\0"),
            ("a ZFS pool", 129 << 10, &0x00ba_b10c_u64.to_be_bytes()),
            (
                "the second header of a GPT partition table",
                size - 512,
                b"EFI PART",
            ),
            ("a RAID member", (4 << 20) - (64 << 10), &MD),
            ("a RAID member", (size - 8192) / 4096 * 4096, &MD),
        ] {
            let mut disk = vec![0; size];
            disk[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(found(&disk), Some(name));
        }
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[0x55; 700]), None);
    }

    /// Of the many spills there are, one has these two bytes there.
    #[test]
    fn two_bytes_alone_are_no_mark() {
        let mut disk: Vec<u8> = (0..4 << 20)
            .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(found(&disk), None);
    }
}
