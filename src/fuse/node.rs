//! The files of the directory and their inode numbers, which never change.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};

use super::DISK_FILE;
use crate::attributes::Attribute;
use crate::units::PAGE_SIZE;

const ROOT_INO: u64 = 1;
const DISK_INO: u64 = 2;
const FIRST_ATTRIBUTE_INO: u64 = 3;

/// A file of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Root,
    Disk,
    Attribute(Attribute),
}

impl Node {
    /// The node that the kernel calls `ino`.
    pub(super) fn from_ino(ino: INodeNo) -> Option<Self> {
        match ino.0 {
            ROOT_INO => Some(Self::Root),
            DISK_INO => Some(Self::Disk),
            other => {
                let index = usize::try_from(other.checked_sub(FIRST_ATTRIBUTE_INO)?).ok()?;
                Attribute::ALL.get(index).copied().map(Self::Attribute)
            }
        }
    }

    /// The file called `name` in the directory.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        if name == DISK_FILE {
            return Some(Self::Disk);
        }
        Attribute::from_name(name).map(Self::Attribute)
    }

    /// The files of the directory, in order.
    pub(super) fn files() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Disk).chain(Attribute::ALL.into_iter().map(Self::Attribute))
    }

    pub(super) fn ino(self) -> INodeNo {
        INodeNo(match self {
            Self::Root => ROOT_INO,
            Self::Disk => DISK_INO,
            Self::Attribute(attribute) => FIRST_ATTRIBUTE_INO + attribute as u64,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Root => ".",
            Self::Disk => DISK_FILE,
            Self::Attribute(attribute) => attribute.name(),
        }
    }

    pub(super) fn kind(self) -> FileType {
        match self {
            Self::Root => FileType::Directory,
            Self::Disk | Self::Attribute(_) => FileType::RegularFile,
        }
    }

    /// Permission bits.
    fn mode(self) -> u16 {
        match self {
            Self::Root => 0o555,
            Self::Disk => 0o600,
            Self::Attribute(attribute) => attribute.mode(),
        }
    }
}

/// What the files of one mount have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) since: SystemTime,
}

impl Owner {
    /// What `stat` says of `node`, of `size` bytes of which `stored` are kept. An attribute's
    /// size is a page, as in sysfs.
    pub(super) fn attr(&self, node: Node, size: u64, stored: u64) -> FileAttr {
        FileAttr {
            ino: node.ino(),
            size,
            blocks: stored.div_ceil(512),
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: node.kind(),
            perm: node.mode(),
            nlink: if node == Node::Root { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: PAGE_SIZE as u32,
            flags: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_found_by_name_and_inode() {
        for node in Node::files() {
            assert_eq!(Node::from_name(node.name()), Some(node));
            assert_eq!(Node::from_ino(node.ino()), Some(node));
        }
        assert_eq!(Node::from_ino(INodeNo(ROOT_INO)), Some(Node::Root));
        let past_end = FIRST_ATTRIBUTE_INO + Attribute::ALL.len() as u64;
        for ino in [0, past_end, u64::MAX] {
            assert_eq!(Node::from_ino(INodeNo(ino)), None);
        }
        assert_eq!(Node::from_name("."), None);
    }
}
