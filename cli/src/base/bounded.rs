//! Work that is not waited for beyond a bound: for a disk that hangs, or a reader that does not read.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Does `work` in a thread of its own; `None` if it takes longer than `timeout` and goes on by itself. Where
/// there is no thread to be had it is done here, which may take longer: better late than never.
pub(crate) fn within<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, finished) = mpsc::channel();
    let worker = thread::Builder::new().name("bounded".to_owned());
    let ours = Arc::new(Mutex::new(Some(work)));
    let its = Arc::clone(&ours);
    let started = worker.spawn(move || {
        if let Some(work) = take(&its) {
            // Nobody is there any more if it took too long.
            let _ = done.send(work());
        }
    });
    match started {
        Ok(_) => finished.recv_timeout(timeout).ok(),
        // A thread that did not start has left it there.
        Err(_) => take(&ours).map(|work| work()),
    }
}

fn take<W>(work: &Mutex<Option<W>>) -> Option<W> {
    work.lock().unwrap_or_else(PoisonError::into_inner).take()
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
