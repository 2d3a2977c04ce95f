//! An image that pages still come from is emptied: to memory while there is room, then to the
//! backing, or else it waits for room.
//!
//! The image's segments are sealed ones of the log that are only ever emptied, in a place of their
//! own: what is in them is read back, overwritten and freed like all that is spilled. They are read by
//! a thread that does nothing else: an image may be on a disk that hangs, and nobody waits for it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::clean::{Cleaned, To};
use super::{Progress, Writeback};
use crate::io::has_room_to_restore;
use crate::spill::{BlockBuf, Imported, NextOfImage, Reading, SegmentIndex};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::channel::{self, Receiver, Sender};
use crate::sync::thread;
use crate::sync::time::Instant;
use crate::waker::Waker;

/// How long it waits while writers wait for memory.
const SHORT_REST: Duration = Duration::from_millis(50);

/// How long it waits where there is no room, or what is left could not be read.
const REST: Duration = Duration::from_secs(1);

/// How long it waits where what is left is damaged, and goes only by being overwritten.
const LONG_REST: Duration = Duration::from_secs(60);

/// An image that is being emptied.
pub(super) struct Restoring {
    path: PathBuf,
    began: Instant,
    reader: Reader,
    rests_until: Option<Instant>,
    /// Why some of it cannot leave, as it was logged.
    noted: Option<&'static str>,
}

type Read = (Reading, io::Result<()>);

/// A thread that reads segments, one at a time.
struct Reader {
    jobs: Sender<Reading>,
    done: Receiver<Read>,
    is_reading: bool,
    /// Memory for the next segment.
    spare: BlockBuf,
}

impl Reader {
    /// Starts the thread; it calls `waker` for each segment that it has read.
    ///
    /// # Errors
    /// The kernel's.
    fn start(waker: Arc<Waker>) -> io::Result<Self> {
        let (jobs, to_read) = channel::unbounded::<Reading>();
        let (read, done) = channel::unbounded();
        thread::Builder::new()
            .name("uzram-restore".into())
            .spawn(move || {
                for mut reading in &to_read {
                    // A bug here must not leave the image half empty without a word.
                    let run = AssertUnwindSafe(|| reading.run());
                    let result = catch_unwind(run).unwrap_or_else(|_| {
                        Err(io::Error::other("the thread that reads panicked"))
                    });
                    // Whoever asked may have gone.
                    let _ = read.send((reading, result));
                    waker.wake();
                }
            })?;
        Ok(Self {
            jobs,
            done,
            is_reading: false,
            spare: BlockBuf::default(),
        })
    }

    fn submit(&mut self, reading: Reading) {
        // The thread ends only with us.
        self.is_reading = self.jobs.send(reading).is_ok();
    }

    /// What was read, if it has been.
    fn take(&mut self) -> Option<Read> {
        let read = self.done.try_recv().ok()?;
        self.is_reading = false;
        Some(read)
    }
}

impl Writeback {
    /// Begins to empty the image, to whose records slots refer.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub(super) fn restore(&mut self, image: Imported) -> Result<(), String> {
        self.prepare()?;
        let reader = Reader::start(Arc::clone(&self.engine.waker));
        let reader = reader.map_err(|error| format!("cannot start a thread to read: {error}"))?;
        let store = self
            .engine
            .spilled
            .stores
            .image()
            .ok_or("there is no image")?;
        self.appender.log.import(image);
        self.restoring = Some(Restoring {
            path: store.path().to_owned(),
            began: Instant::now(),
            reader,
            rests_until: None,
            noted: None,
        });
        self.engine.waker.wake();
        Ok(())
    }

    /// Goes on to empty the image.
    pub(super) fn go_on_restoring(&mut self) -> Progress {
        if self.engine.is_stopping() {
            // What is left in it can still be read.
            self.restoring = None;
        }
        let Some(restoring) = &mut self.restoring else {
            return Progress::Idle;
        };
        if restoring.reader.is_reading {
            let read = restoring.reader.take();
            return read.map_or(Progress::Idle, |read| self.empty_read(read));
        }
        if self.restoring_rests() != Some(Duration::ZERO) {
            return Progress::Idle;
        }
        if self.engine.limit.throttle.demand() {
            return self.rest(SHORT_REST);
        }
        // A backing that leaves has nowhere else to go.
        if self.replaced.is_some() {
            return self.rest(REST);
        }
        match self.appender.log.next_of_image() {
            NextOfImage::Move(_) if self.room_to_restore().is_none() => {
                self.note_stuck("there is no room for all of it");
                self.rest(REST)
            }
            NextOfImage::Move(segment) => self.read_of_image(segment),
            NextOfImage::Later => self.rest(REST),
            NextOfImage::Damaged => {
                self.note_stuck("what is left of it is damaged");
                self.rest(LONG_REST)
            }
            NextOfImage::Done => {
                self.note_restored();
                Progress::Idle
            }
        }
    }

    fn read_of_image(&mut self, segment: SegmentIndex) -> Progress {
        if let Some(restoring) = &mut self.restoring {
            let spare = std::mem::take(&mut restoring.reader.spare);
            if let Ok(reading) = self.appender.log.begin_reading(segment, spare) {
                restoring.reader.submit(reading);
                return Progress::Idle;
            }
        }
        self.rest(REST)
    }

    /// Moves what is live in a segment that was read.
    fn empty_read(&mut self, (mut reading, result): Read) -> Progress {
        let segment = reading.segment;
        self.appender.log.end_reading(segment, result.is_ok());
        let room = self.room_to_restore();
        let emptied = match (result, room) {
            (Err(error), _) => {
                self.note_unreadable(segment, &error);
                Ok(Cleaned::Unreadable)
            }
            (Ok(()), None) => {
                self.appender.log.end_cleaning(segment, false);
                Ok(Cleaned::NoRoom)
            }
            (Ok(()), Some(to)) => {
                std::mem::swap(&mut self.segment, &mut reading.bytes);
                let emptied = self.empty_and_complete(segment, &reading.records, to);
                std::mem::swap(&mut self.segment, &mut reading.bytes);
                emptied
            }
        };
        if let Some(restoring) = &mut self.restoring {
            restoring.reader.spare = reading.bytes;
        }
        match emptied {
            // Where there was room before there may be some elsewhere.
            Ok(Cleaned::NoRoom) if self.room_to_restore() != room => Progress::More,
            // What failed is logged.
            Ok(Cleaned::NoRoom) | Err(_) => self.rest(REST),
            Ok(Cleaned::All | Cleaned::Damaged | Cleaned::Unreadable) => Progress::More,
        }
    }

    /// How long it waits before it goes on with an image, if that is not for it to be read.
    pub(super) fn restoring_rests(&self) -> Option<Duration> {
        let restoring = self.restoring.as_ref()?;
        let is_empty = self.engine.spilled.segments.image_bytes() == 0;
        let rests = restoring.rests_until.filter(|_| !is_empty);
        let rests = rests.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        });
        Some(rests).filter(|_| !restoring.reader.is_reading)
    }

    fn rest(&mut self, period: Duration) -> Progress {
        if let Some(restoring) = &mut self.restoring {
            restoring.rests_until = Some(Instant::now() + period);
        }
        Progress::Idle
    }

    /// Where what an image has can go.
    fn room_to_restore(&self) -> Option<To> {
        let has_room = self.appender.log.free_segments() > self.appender.log.kept_from_image();
        let spills = has_room
            && self.engine.spilled.stores.spills()
            && !self.engine.spilled.quota.is_limited();
        self.engine.spilled.image_spills.store(spills, Relaxed);
        if has_room_to_restore(&self.engine) {
            return Some(To::SpareMemory);
        }
        spills.then_some(To::SpareLog)
    }

    fn note_restored(&mut self) {
        let Some(restoring) = self.restoring.take() else {
            return;
        };
        let seconds = restoring.began.elapsed().as_secs_f64();
        let path = restoring.path.display();
        tracing::info!("{path} is needed no more, after {seconds:.1} s");
    }

    fn note_stuck(&mut self, why: &'static str) {
        let left = self.engine.spilled.segments.image_bytes() as f64 / f64::from(1 << 20);
        if let Some(restoring) = &mut self.restoring
            && restoring.noted.replace(why) != Some(why)
        {
            let path = restoring.path.display();
            tracing::warn!("{path} is still needed, for {left:.1} MiB: {why}");
        }
    }
}
