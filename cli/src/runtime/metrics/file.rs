//! A file of metrics, which stands where others may have what they like: nothing is opened there that
//! would hold us up or have no end, and nothing replaced or removed that is no file of metrics of ours.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use uzram::Links;

use super::exposition::{Format, up_of};
use super::source::Source;
use crate::base::name::Name;

/// How often a file is written: as often as most scrape.
const EVERY: Duration = Duration::from_secs(15);

/// Bytes at the start of a file that say whose it is: ours begin with that.
const HEAD: u64 = 4096;

/// A file that is written from time to time, and removed at the end so that nobody takes its
/// figures for those of a device that lives.
pub(super) struct FileWriter {
    path: PathBuf,
    name: Name,
    /// Dropped to stop it.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FileWriter {
    pub(super) fn start(path: &Path, source: Arc<Source>) -> Result<Self> {
        replace(path, &source)?;
        let (stop, stopped) = mpsc::channel();
        let written = path.to_owned();
        // From here on the file goes with it.
        let mut writer = Self {
            path: path.to_owned(),
            name: source.name.clone(),
            stop: Some(stop),
            thread: None,
        };
        let thread = thread::Builder::new().name("uzram-metrics".to_owned());
        let thread = thread.spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = replace(&written, &source) {
                    tracing::warn!("{error:#}");
                }
            }
        })?;
        writer.thread = Some(thread);
        Ok(writer)
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It has no end but the one just asked for.
            let _ = thread.join();
        }
        if let Err(error) = remove_stale(&self.path, &self.name) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Puts the metrics in the place of the file `path`, for others to see all of it or nothing. They may be
/// other users, and the directory theirs.
///
/// # Errors
/// If something is there that is no file of metrics of ours, nor empty.
fn replace(path: &Path, source: &Source) -> Result<()> {
    match open(path) {
        Ok((_, head)) if head.is_empty() || head.starts_with(b"# HELP uzram_") => {}
        Err(uzram::Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
        Ok(_) => bail!(
            "{} holds something else: remove it, or give another path",
            path.display()
        ),
        Err(error) => return Err(error.into()),
    }
    let text = source.text(Format::Prometheus);
    Ok(uzram::write_whole(
        path,
        Links::Refuse,
        text.as_bytes(),
        0o644,
    )?)
}

/// Removes the file that a server of `name` has written to; any other's stays.
///
/// # Errors
/// If it is there and cannot be removed.
pub(crate) fn remove_stale(path: &Path, name: &Name) -> Result<()> {
    let Ok((file, head)) = open(path) else {
        return Ok(());
    };
    let is_ours = String::from_utf8_lossy(&head).contains(&up_of(name.as_str()));
    let place = |meta: fs::Metadata| (meta.dev(), meta.ino());
    // It may have been replaced since.
    let there = fs::symlink_metadata(path).map(place).ok();
    if !is_ours || there != file.metadata().map(place).ok() {
        return Ok(());
    }
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// How the regular file at `path` begins, and it.
fn open(path: &Path) -> uzram::Result<(File, Vec<u8>)> {
    let file = uzram::open_named_file(path, Links::Refuse)?;
    let mut head = Vec::new();
    let read = (&file).take(HEAD).read_to_end(&mut head);
    read.map_err(|error| uzram::Error::io(format!("read {}", path.display()), error))?;
    Ok((file, head))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use rustix::fs::Mode;

    #[test]
    fn a_file_is_there_from_the_start_and_gone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uzram.prom");
        let (source, _device) = Source::of_a_device();
        // Where others can write they plant links, to have us write elsewhere.
        let (elsewhere, planted) = (
            dir.path().join("elsewhere"),
            dir.path().join("uzram.prom.new"),
        );
        fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &planted).unwrap();
        let writer = FileWriter::start(&path, Arc::new(source)).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
        fs::remove_file(&planted).unwrap();
        fs::remove_file(&elsewhere).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "{mode:o}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("uzram_up{device=\"a\"} 1\n"), "{text}");
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_of_somebody_else_is_neither_replaced_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        let (source, _device) = Source::of_a_device();
        let source = Arc::new(source);
        fs::write(&path, "precious").unwrap();
        let error = FileWriter::start(&path, Arc::clone(&source)).err().unwrap();
        assert!(error.to_string().contains("remove it"), "{error}");
        // As mktemp makes them.
        fs::write(&path, "").unwrap();
        let writer = FileWriter::start(&path, source).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(writer);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    /// In a directory of somebody else's.
    #[test]
    fn what_is_no_plain_file_is_neither_read_nor_replaced_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let (source, _device) = Source::of_a_device();
        let mkfifo = |at: &Path| {
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, at, mode).unwrap();
        };
        let link = |at: &Path| std::os::unix::fs::symlink("/dev/zero", at).unwrap();
        for place in [&mkfifo as &dyn Fn(&Path), &link] {
            place(&path);
            assert!(replace(&path, &source).is_err());
            remove_stale(&path, &source.name).unwrap();
            assert!(!fs::symlink_metadata(&path).unwrap().is_file());
            fs::remove_file(&path).unwrap();
        }
        replace(&path, &source).unwrap();
        remove_stale(&path, &"b".parse().unwrap()).unwrap();
        assert!(path.exists());
        remove_stale(&path, &source.name).unwrap();
        assert!(!path.exists());
    }
}
