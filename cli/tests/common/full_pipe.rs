//! A reader that does not read.

use std::io::{PipeReader, PipeWriter, Write};

/// A pipe that takes no more, and its other end, which is to be kept.
pub(crate) fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // What the kernel gives a pipe (pipe(7)).
    writer.write_all(&[b' '; 64 << 10]).unwrap();
    (reader, writer)
}
