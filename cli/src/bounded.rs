//! Work that is not waited for beyond a bound: for a disk that hangs, or a reader that does not read.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Does `work` in a thread of its own; `None` if it takes longer than `patience` and goes on by itself,
/// or there is no thread to be had.
pub(crate) fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, finished) = mpsc::channel();
    let worker = thread::Builder::new().name("bounded".to_owned());
    let started = worker.spawn(move || {
        // Nobody is there any more if it took too long.
        let _ = done.send(work());
    });
    started.ok()?;
    finished.recv_timeout(patience).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_in_time_is_returned() {
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
        let (_open, never) = mpsc::channel::<()>();
        let hung = move || never.recv().is_ok();
        assert_eq!(within(Duration::from_millis(1), hung), None);
    }
}
