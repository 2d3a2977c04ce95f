//! What the kernel asks of the mount, answered from the device.
//!
//! Finds the file that is meant and leaves the rest to it: `disk` to [`Disk`], an attribute to
//! [`Attribute`]. Nothing in the directory can be made, changed in kind, or removed.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::disk::Disk;
use super::node::{Node, Owner};
use super::snapshots::{Part, Snapshots};
use super::uring::Offer;
use super::{MAX_REQUEST_BYTES, errno};
use crate::attributes::Attribute;
use crate::device::Device;
use crate::units::PAGE_SIZE;

/// Asynchronous requests that the kernel sends before it makes its callers wait.
const MAX_BACKGROUND: u16 = 256;

/// Names and their inodes never change.
const FOREVER: Duration = Duration::from_secs(24 * 60 * 60);

/// `st_blocks` of `disk` changes with every write.
const NEVER: Duration = Duration::ZERO;

/// Clones answer alike, for the same files.
#[derive(Clone)]
pub(super) struct Frontend {
    disk: Arc<Disk>,
    /// Whose attributes are shown; none for a bare block device.
    device: Option<Arc<Device>>,
    snapshots: Arc<Snapshots>,
    owner: Owner,
    rings: Offer,
}

impl Frontend {
    pub(super) fn new(disk: Disk, device: Option<Arc<Device>>, rings: Offer) -> Self {
        Self {
            disk: Arc::new(disk),
            device,
            snapshots: Arc::default(),
            owner: Owner {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                since: SystemTime::now(),
            },
            rings,
        }
    }

    pub(super) fn disk(&self) -> Arc<Disk> {
        Arc::clone(&self.disk)
    }

    /// The node of `ino`; attributes exist only with a device that has them.
    fn node(&self, ino: INodeNo) -> Result<Node, Errno> {
        Node::from_ino(ino)
            .filter(|&node| self.has(node))
            .ok_or(Errno::ENOENT)
    }

    fn has(&self, node: Node) -> bool {
        self.device.is_some() || !matches!(node, Node::Attribute(_))
    }

    /// The device, and which of its attributes `ino` is.
    fn attribute(&self, ino: INodeNo) -> Result<(&Arc<Device>, Attribute), Errno> {
        match (self.node(ino)?, &self.device) {
            (Node::Attribute(attribute), Some(device)) => Ok((device, attribute)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Bytes of data kept.
    fn stored(&self) -> u64 {
        match &self.device {
            Some(device) => device.orig_data_size().min(self.disk.size()),
            None => self.disk.size(),
        }
    }

    fn stat(&self, node: Node) -> (Duration, fuser::FileAttr) {
        match node {
            Node::Root => (FOREVER, self.owner.attr(node, 0, 0)),
            Node::Disk => {
                let mut attr = self.owner.attr(node, self.disk.size(), self.stored());
                if self.disk.is_read_only() {
                    attr.perm &= !0o222;
                }
                (NEVER, attr)
            }
            Node::Attribute(_) => (FOREVER, self.owner.attr(node, PAGE_SIZE as u64, 0)),
        }
    }

    fn read_attribute(&self, ino: INodeNo, fh: FileHandle, offset: u64) -> Result<Part, Errno> {
        let (device, attribute) = self.attribute(ino)?;
        if attribute == Attribute::BlockState {
            return self.read_block_state(device, fh, offset);
        }
        if offset == 0 {
            let text = attribute.show(device).map_err(|error| errno(&error))?;
            self.snapshots.take(fh, Part::whole(text));
        }
        self.snapshots.get(fh).ok_or(Errno::EBADF)
    }

    /// The part of the text that has the byte at `offset`, or the end of it: what a reader from the
    /// start on comes to.
    fn read_block_state(
        &self,
        device: &Device,
        fh: FileHandle,
        offset: u64,
    ) -> Result<Part, Errno> {
        let mut part = self.snapshots.get(fh).ok_or(Errno::EBADF)?;
        if offset == 0 {
            part = Part {
                next: Some(0),
                ..Part::default()
            };
        }
        while offset == part.end()
            && let Some(from) = part.next
        {
            let states = device.block_states(from);
            part = Part {
                start: part.end(),
                text: states.text.into(),
                next: states.next,
            };
            self.snapshots.take(fh, part.clone());
        }
        match offset.checked_sub(part.start) {
            Some(within) if within <= part.text.len() as u64 => Ok(part),
            _ => Err(Errno::ESPIPE),
        }
    }

    /// Stores a value, and answers, in a thread of its own: that may take minutes, and the threads that
    /// serve are few. The kernel writes to an attribute once at a time, so these are, too.
    fn write_attribute(&self, ino: INodeNo, data: &[u8], reply: ReplyWrite) {
        let (device, attribute) = match self.attribute(ino) {
            Ok((device, attribute)) => (Arc::clone(device), attribute),
            Err(errno) => return reply.error(errno),
        };
        let Ok(value) = std::str::from_utf8(data).map(str::to_owned) else {
            return reply.error(Errno::EINVAL);
        };
        let store = move || match attribute.store(&device, &value) {
            Ok(()) => reply.written(value.len() as u32),
            Err(error) => reply.error(errno(&error)),
        };
        let thread = thread::Builder::new().name("uzram-attribute".to_owned());
        if let Err(error) = thread.spawn(store) {
            // The reply that went with it is an error by itself.
            tracing::warn!(
                "cannot start a thread to store {}: {error}",
                attribute.name()
            );
        }
    }

    fn flush_disk(&self, ino: INodeNo) -> Result<(), Errno> {
        match self.node(ino)? {
            Node::Disk => self.disk.flush(),
            Node::Root | Node::Attribute(_) => Ok(()),
        }
    }
}

/// Answers requests with one errno, whatever they ask. fuser would warn of each.
macro_rules! refuse {
    ($errno:ident: $($request:ident($($argument:ty),*) -> $reply:ty;)*) => {$(
        fn $request(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::$errno);
        }
    )*};
}

impl Filesystem for Frontend {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The last has `disk` mapped by those who share the mapping (Linux 6.6). Their pages are in
        // the kernel's cache until msync(2), or the end of the mapping.
        let wanted = InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        let mut there = wanted & config.capabilities();
        let rings = InitFlags::FUSE_OVER_IO_URING;
        if config.capabilities().contains(rings) && self.rings.accept() {
            there |= rings;
        }
        // Each of these says no only to what the kernel or fuser cannot do, and then has a default.
        let _ = config.add_capabilities(there);
        let _ = config.set_max_write(MAX_REQUEST_BYTES);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND * 3 / 4);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let node = match Node::from_ino(parent) {
            Some(Node::Root) => name.to_str().and_then(Node::from_name),
            _ => None,
        };
        match node.filter(|&node| self.has(node)) {
            Some(node) => {
                let (ttl, attr) = self.stat(node);
                reply.entry_with_ttls(&ttl, &FOREVER, &attr, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Ok(node) => {
                let (ttl, attr) = self.stat(node);
                reply.attr(&ttl, &attr);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        let allowed = match (node, size) {
            // The answer has the true size, which the kernel takes as it is.
            (Node::Disk, Some(size)) => self.disk.truncate(size, req.pid(), fh),
            // A shell's ">" truncates before it writes.
            (Node::Attribute(_), Some(_)) => Ok(()),
            (_, None) | (Node::Root, _) => Err(Errno::EPERM),
        };
        match allowed {
            Ok(()) => {
                let (ttl, attr) = self.stat(node);
                reply.attr(&ttl, &attr);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        match self.node(ino) {
            // Root passes the kernel's check of the mode. A loop device is then made read-only.
            Ok(Node::Disk)
                if self.disk.is_read_only() && flags.acc_mode() != OpenAccMode::O_RDONLY =>
            {
                reply.error(Errno::EROFS);
            }
            Ok(Node::Disk) => {
                let flags = direct | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                reply.opened(self.disk.open(req.pid()), flags);
            }
            Ok(Node::Attribute(attribute)) => {
                // Root passes the kernel's check of the mode; sysfs refuses it all the same.
                let reads = flags.acc_mode() != OpenAccMode::O_WRONLY;
                let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
                if reads && !attribute.is_readable() || writes && !attribute.is_writable() {
                    return reply.error(Errno::EACCES);
                }
                reply.opened(self.snapshots.open(), direct);
            }
            Ok(Node::Root) => reply.error(Errno::EISDIR),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        match Node::from_ino(ino) {
            Some(Node::Disk) => self.disk.close(fh),
            Some(Node::Attribute(_)) => self.snapshots.close(fh),
            Some(Node::Root) | None => {}
        }
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if ino != Node::Disk.ino() {
            return match self.read_attribute(ino, fh, offset) {
                Ok(part) => reply.data(piece(part.text.as_bytes(), offset - part.start, size)),
                Err(errno) => reply.error(errno),
            };
        }
        self.disk.reply_read(offset, size, reply);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if ino != Node::Disk.ino() {
            // As in sysfs, each write is a whole value, wherever it is written.
            return self.write_attribute(ino, data, reply);
        }
        match self.disk.write(offset, data, flags.0.cast_unsigned()) {
            Ok(len) => reply.written(len),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if ino != Node::Disk.ino() {
            return reply.error(Errno::EOPNOTSUPP);
        }
        answer(self.disk.allocate(offset, length, mode), reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        if ino != Node::Disk.ino() {
            return reply.error(Errno::EINVAL);
        }
        match self.disk.seek(offset, whence) {
            // A device has at most 2^44 bytes.
            Ok(offset) => reply.offset(offset.cast_signed()),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        answer(self.flush_disk(ino), reply);
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer(self.flush_disk(ino), reply);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if Node::from_ino(ino) != Some(Node::Root) {
            return reply.error(Errno::ENOTDIR);
        }
        let root = Node::Root.ino();
        let dots = [
            (root, FileType::Directory, "."),
            (root, FileType::Directory, ".."),
        ];
        let files = Node::files()
            .filter(|&node| self.has(node))
            .map(|node| (node.ino(), node.kind(), node.name()));
        // An entry's offset is where the next call continues.
        for (next, (ino, kind, name)) in (1..).zip(dots.into_iter().chain(files)) {
            if next > offset && reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let page = PAGE_SIZE as u32;
        let blocks = self.disk.size() / u64::from(page);
        let free = blocks.saturating_sub(self.stored() / u64::from(page));
        let files = Node::files().filter(|&node| self.has(node)).count() as u64;
        reply.statfs(blocks, free, free, files, 0, page, 255, page);
    }

    // Nothing can be made, moved or removed.
    refuse! { EPERM:
        create(INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate;
        mknod(INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry;
        mkdir(INodeNo, &OsStr, u32, u32) -> ReplyEntry;
        symlink(INodeNo, &OsStr, &Path) -> ReplyEntry;
        link(INodeNo, INodeNo, &OsStr) -> ReplyEntry;
        unlink(INodeNo, &OsStr) -> ReplyEmpty;
        rmdir(INodeNo, &OsStr) -> ReplyEmpty;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
    }

    // The kernel asks these once, and then does without by itself.
    refuse! { ENOSYS:
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty;
        getxattr(INodeNo, &OsStr, u32) -> ReplyXattr;
        listxattr(INodeNo, u32) -> ReplyXattr;
        removexattr(INodeNo, &OsStr) -> ReplyEmpty;
        access(INodeNo, AccessFlags) -> ReplyEmpty;
        fsyncdir(INodeNo, FileHandle, bool) -> ReplyEmpty;
        bmap(INodeNo, u32, u64) -> ReplyBmap;
        poll(INodeNo, FileHandle, PollNotifier, PollEvents, PollFlags) -> ReplyPoll;
        copy_file_range(INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64, CopyFileRangeFlags) -> ReplyWrite;
    }

    refuse! { ENOTTY:
        ioctl(INodeNo, FileHandle, IoctlFlags, u32, &[u8], u32) -> ReplyIoctl;
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// At most `size` bytes of `text` from `offset` on.
fn piece(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).map_or(text.len(), |offset| offset.min(text.len()));
    let rest = &text[start..];
    &rest[..rest.len().min(size as usize)]
}
