//! What the kernel asks of the mount, answered from the device.
//!
//! `disk` behaves as a block device does: its size is fixed, a read stops at the end, a write
//! past it is ENOSPC, a hole punched is a discard, and space is never set aside. Nothing in the
//! directory can be made or removed.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::FallocateFlags;

use super::node::{Node, Owner};
use super::snapshots::Snapshots;
use crate::attributes::Attribute;
use crate::block_device::{BlockDevice, check_range};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::units::{PAGE_SIZE, PageState};

/// The largest read or write, bytes: what the kernel allows without a raised sysctl.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// Asynchronous requests that the kernel sends before it makes its callers wait.
const MAX_BACKGROUND: u16 = 256;

/// Names and their inodes never change.
const FOREVER: Duration = Duration::from_secs(24 * 60 * 60);

/// `st_blocks` of `disk` changes with every write.
const NEVER: Duration = Duration::ZERO;

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

thread_local! {
    /// Where a read is put together: zeroed when it grows, never again.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) struct Frontend {
    disk: Arc<dyn BlockDevice>,
    /// Whose attributes are shown; none for a bare block device.
    device: Option<Arc<Device>>,
    disk_openers: Arc<AtomicUsize>,
    snapshots: Snapshots,
    owner: Owner,
}

impl Frontend {
    pub(super) fn new(
        disk: Arc<dyn BlockDevice>,
        device: Option<Arc<Device>>,
        disk_openers: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            disk,
            device,
            disk_openers,
            snapshots: Snapshots::default(),
            owner: Owner {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                since: SystemTime::now(),
            },
        }
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
    fn attribute(&self, ino: INodeNo) -> Result<(&Device, Attribute), Errno> {
        match (self.node(ino)?, &self.device) {
            (Node::Attribute(attribute), Some(device)) => Ok((device, attribute)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Bytes of data kept.
    fn stored(&self) -> u64 {
        match &self.device {
            Some(device) => device.stats().orig_data_size.min(self.disk.size()),
            None => self.disk.size(),
        }
    }

    fn stat(&self, node: Node) -> (Duration, fuser::FileAttr) {
        match node {
            Node::Root => (FOREVER, self.owner.attr(node, 0, 0)),
            Node::Disk => {
                let attr = self.owner.attr(node, self.disk.size(), self.stored());
                (NEVER, attr)
            }
            Node::Attribute(_) => (FOREVER, self.owner.attr(node, PAGE_SIZE as u64, 0)),
        }
    }

    /// How many of `len` bytes at `offset` lie before the end of the device.
    fn clip(&self, offset: u64, len: u64) -> u64 {
        self.disk.size().saturating_sub(offset).min(len)
    }

    fn read_attribute(&self, ino: INodeNo, fh: FileHandle, offset: u64) -> Result<Arc<str>, Errno> {
        let (device, attribute) = self.attribute(ino)?;
        if offset == 0 {
            let text = attribute.show(device).map_err(|error| errno(&error))?;
            self.snapshots.take(fh, text.into());
        }
        self.snapshots.get(fh).ok_or(Errno::EBADF)
    }

    fn write_attribute(&self, ino: INodeNo, data: &[u8]) -> Result<(), Errno> {
        let (device, attribute) = self.attribute(ino)?;
        let value = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
        // As in zram: data under a file system or a swap area is not thrown away.
        if attribute == Attribute::Reset && self.disk_openers.load(Ordering::Relaxed) != 0 {
            return Err(Errno::EBUSY);
        }
        attribute
            .store(device, value)
            .map_err(|error| errno(&error))
    }

    fn write_disk(&self, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let len = self.clip(offset, data.len() as u64);
        if len == 0 && !data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        // Both fit: a request has at most `MAX_REQUEST_BYTES`.
        self.disk
            .write(offset, &data[..len as usize])
            .map_err(|error| errno(&error))?;
        Ok(len as u32)
    }

    fn allocate(&self, offset: u64, len: u64, flags: FallocateFlags) -> Result<(), Errno> {
        const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
        const ZERO_KEEP: FallocateFlags =
            FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
        let clipped = self.clip(offset, len);
        match flags {
            // With the size kept, what lies past the end is not there to change.
            PUNCH | ZERO_KEEP if clipped == 0 => Ok(()),
            PUNCH => self.disk.discard(offset, clipped),
            ZERO_KEEP => self.disk.write_zeroes(offset, clipped),
            FallocateFlags::ZERO_RANGE => check_range(offset, len, self.disk.size())
                .and_then(|()| self.disk.write_zeroes(offset, len)),
            // Space cannot be set aside in a device that is as large as what it holds.
            _ => return Err(Errno::EOPNOTSUPP),
        }
        .map_err(|error| errno(&error))
    }

    /// The first byte from `offset` on that is data, or in a hole; the end counts as a hole.
    fn seek(&self, offset: u64, whence: i32) -> Result<u64, Errno> {
        let size = self.disk.size();
        let wants_hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return Err(Errno::EINVAL),
        };
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let mut found = wants_hole.then_some(size);
        self.disk.extents(offset..size, &mut |extent| {
            if (extent.state == PageState::Empty) == wants_hole {
                found = Some(extent.offset);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found.ok_or(Errno::ENXIO)
    }

    fn flush_disk(&self, ino: INodeNo) -> Result<(), Errno> {
        match self.node(ino)? {
            Node::Disk => self.disk.flush().map_err(|error| errno(&error)),
            Node::Root | Node::Attribute(_) => Ok(()),
        }
    }
}

impl Filesystem for Frontend {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_PARALLEL_DIROPS;
        let there = wanted & config.capabilities();
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
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
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
            (Node::Disk, Some(size)) if size == self.disk.size() => Ok(()),
            (Node::Disk, Some(_)) => Err(Errno::EINVAL),
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

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        match self.node(ino) {
            Ok(Node::Disk) => {
                self.disk_openers.fetch_add(1, Ordering::Relaxed);
                let flags = direct | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                reply.opened(FileHandle(0), flags);
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
            Some(Node::Disk) => {
                self.disk_openers.fetch_sub(1, Ordering::Relaxed);
            }
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
                Ok(text) => reply.data(piece(text.as_bytes(), offset, size)),
                Err(errno) => reply.error(errno),
            };
        }
        let len = self.clip(offset, size.into()) as usize;
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let data = &mut buffer[..len];
            match self.disk.read(offset, data) {
                Ok(()) => reply.data(data),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = if ino == Node::Disk.ino() {
            self.write_disk(offset, data)
        } else {
            // As in sysfs, each write is a whole value, wherever it is written.
            self.write_attribute(ino, data).map(|()| data.len() as u32)
        };
        match written {
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
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        answer(self.allocate(offset, length, flags), reply);
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
        let found = match (ino == Node::Disk.ino(), u64::try_from(offset)) {
            (true, Ok(offset)) => self.seek(offset, whence),
            (true, Err(_)) => Err(Errno::ENXIO),
            (false, _) => Err(Errno::EINVAL),
        };
        match found {
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

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno().raw_os_error())
}

/// At most `size` bytes of `text` from `offset` on.
fn piece(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).map_or(text.len(), |offset| offset.min(text.len()));
    let rest = &text[start..];
    &rest[..rest.len().min(size as usize)]
}
