//! What is asked of the mount in vain does not fill the log.

use std::fs;
use std::os::unix::fs::symlink;

use ::log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{
    OFlags, XattrFlags, copy_file_range, getxattr, ioctl_blksszget, listxattr, removexattr,
    setxattr,
};
use rustix::io::Errno;

use crate::rig::{MIB, Served, can_mount, errno};

/// What fuser has logged, in this test and those beside it.
struct Heard(Mutex<Vec<String>>);

static HEARD: Heard = Heard(Mutex::new(Vec::new()));

impl Log for Heard {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target().starts_with("fuser") {
            self.0.lock().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn vain_requests_are_refused_quietly() {
    if !can_mount("vain_requests_are_refused_quietly") {
        return;
    }
    ::log::set_logger(&HEARD).expect("the only one");
    ::log::set_max_level(LevelFilter::Info);
    let served = Served::start(MIB);
    let disk = served.open_disk(OFlags::empty());
    let (path, new) = (served.path("disk"), served.path("new"));

    let name = "user.note";
    let refused = Some(Errno::OPNOTSUPP);
    assert_eq!(getxattr(&path, name, &mut [0; 64]).err(), refused);
    assert_eq!(listxattr(&path, &mut [0; 64]).err(), refused);
    assert_eq!(removexattr(&path, name).err(), refused);
    let set = setxattr(&path, name, b"x", XattrFlags::empty());
    assert_eq!(set.err(), refused);
    assert_eq!(ioctl_blksszget(&disk).err(), Some(Errno::NOTTY));
    assert_eq!(errno(symlink("disk", &new)), Some(Errno::PERM));
    assert_eq!(errno(fs::hard_link(&path, &new)), Some(Errno::PERM));

    // These the kernel does itself once it knows that nobody else does.
    poll(&mut [PollFd::new(&disk, PollFlags::IN)], None).expect("ready");
    let copied = copy_file_range(&disk, Some(&mut 0), &disk, Some(&mut 8192), 4096);
    assert_eq!(copied, Ok(4096));
    rustix::fs::fsync(fs::File::open(served.dir.path()).expect("opens")).expect("nothing to do");

    // A mount says at least one thing, so it is known that this listens.
    let heard = HEARD.0.lock();
    let vain: Vec<_> = heard.iter().filter(|s| s.contains("Not Impl")).collect();
    assert!(vain.is_empty(), "{vain:?}");
    assert!(!heard.is_empty());
}
