//! XFS that are mounted. It mounts no two of one UUID, copies of each other, unless it is told to.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A directory for each that is mounted, in any mount namespace, under its device's name.
const MOUNTED: &str = "/sys/fs/xfs";

type Uuid = [u8; 16];

/// Whether another XFS with the UUID of the one on `device` is mounted.
pub(crate) fn has_mounted_twin(device: &Path) -> bool {
    let Some(uuid) = uuid(device) else {
        return false;
    };
    let mounted = fs::read_dir(MOUNTED).into_iter().flatten().flatten();
    let names = mounted.map(|entry| Path::new("/dev").join(entry.file_name()));
    names
        .filter_map(|other| self::uuid(&other))
        .any(|other| other == uuid)
}

/// The UUID of an XFS, from its superblock (`fs/xfs/libxfs/xfs_format.h`, `struct xfs_dsb`).
fn uuid(device: &Path) -> Option<Uuid> {
    const MAGIC: &[u8] = b"XFSB";
    const UUID_AT: usize = 32;
    let mut head = [0; UUID_AT + size_of::<Uuid>()];
    let read = File::open(device).and_then(|device| device.read_exact_at(&mut head, 0));
    read.ok()?;
    head.starts_with(MAGIC)
        .then(|| head[UUID_AT..].try_into().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_that_of_an_xfs() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let mut bytes = vec![0; 512];
        bytes[32..48].fill(9);
        fs::write(&image, &bytes).unwrap();
        assert_eq!(uuid(&image), None);
        bytes[..4].copy_from_slice(b"XFSB");
        fs::write(&image, &bytes).unwrap();
        assert_eq!(uuid(&image), Some([9; 16]));
        assert!(!has_mounted_twin(&image));
        fs::write(&image, &bytes[..40]).unwrap();
        assert_eq!(uuid(&image), None);
    }
}
