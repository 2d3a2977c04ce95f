//! A client, which knows what its part of the device holds.

use std::cell::Cell;
use std::path::Path;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::super::*;
use super::content::{Version, ZEROES, fill, version_of};
use super::history::History;
use super::{CLIENTS, Excuses, RUN, UNIT, UNITS, Weather, faults, image};
use crate::error::{Error, Result};
use support::Random;

pub(super) struct Client {
    number: u64,
    pub(super) excuses: Excuses,
    random: Random,
    /// Shared with the others. It is locked for no longer than it takes to look.
    history: Arc<Mutex<History>>,
    last_version: Version,
    buffer: Vec<u8>,
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) units_verified: u64,
    pub(super) saves: u64,
}

impl Client {
    pub(super) fn new(number: u64, random: Random, history: Arc<Mutex<History>>) -> Self {
        Self {
            number,
            excuses: Excuses::default(),
            random,
            history,
            last_version: image::VERSIONS,
            buffer: vec![0; RUN as usize * UNIT],
            requests: 0,
            failed: 0,
            units_verified: 0,
            saves: 0,
        }
    }

    /// Where on the device one of its units is.
    fn place(&self, own: u64) -> u64 {
        (own / RUN * CLIENTS + self.number) * RUN + own % RUN
    }

    /// Makes a request.
    pub(super) fn request(&mut self, device: &Device) {
        self.requests += 1;
        let within = self.random.below(RUN);
        let count = 1 + self.random.below(RUN - within).min(self.random.below(RUN));
        // Half of the requests go to an eighth of the device.
        let runs = UNITS / CLIENTS / RUN;
        let runs = if self.random.below(2) == 0 {
            runs / 8
        } else {
            runs
        };
        let first = self.random.below(runs) * RUN + within;
        if self.random.below(2000) == 0 {
            return self.save(device);
        }
        match self.random.below(32) {
            0..13 => self.write(device, first, count),
            13 => self.clear(device, first, count, false),
            14 => self.clear(device, first, count, true),
            15..19 => self.look_elsewhere(device, count),
            _ => self.verify(device, first, count),
        }
    }

    fn write(&mut self, device: &Device, first: u64, count: u64) {
        self.last_version += 1;
        let (at, mut bytes) = (self.place(first), std::mem::take(&mut self.buffer));
        let some = &mut bytes[..count as usize * UNIT];
        for (unit, out) in (at..).zip(some.chunks_exact_mut(UNIT)) {
            fill(unit, self.last_version, out);
        }
        self.change(at, count, self.last_version, || {
            device.write(at * UNIT as u64, some)
        });
        self.buffer = bytes;
    }

    fn clear(&mut self, device: &Device, first: u64, count: u64, discard: bool) {
        let at = self.place(first);
        let (offset, len) = (at * UNIT as u64, count * UNIT as u64);
        self.change(at, count, ZEROES, || match discard {
            true => device.discard(offset, len),
            false => device.write_zeroes(offset, len),
        });
    }

    /// Makes a request that is to make units, from the device's unit `at` on, a version.
    fn change(
        &mut self,
        at: u64,
        count: u64,
        version: Version,
        request: impl FnOnce() -> Result<()>,
    ) {
        self.history.lock().begin(at..at + count, version);
        match request() {
            Ok(()) => self.history.lock().succeed(at..at + count),
            Err(error) => self.excuse(&error),
        }
    }

    fn verify(&mut self, device: &Device, first: u64, count: u64) {
        let (at, mut bytes) = (self.place(first), std::mem::take(&mut self.buffer));
        let some = &mut bytes[..count as usize * UNIT];
        match device.read(at * UNIT as u64, some) {
            Ok(()) => {
                let mut history = self.history.lock();
                for (found, unit) in some.chunks_exact(UNIT).zip(at..) {
                    history.find(unit, version_of(unit, found));
                }
                self.units_verified += count;
            }
            Err(error) => self.excuse(&error),
        }
        self.buffer = bytes;
    }

    /// Reads what is anybody's: what it held meanwhile.
    fn look_elsewhere(&mut self, device: &Device, count: u64) {
        let at = self.random.below(UNITS - count);
        let mut bytes = std::mem::take(&mut self.buffer);
        let some = &mut bytes[..count as usize * UNIT];
        let since = self.history.lock().look();
        let read = device.read(at * UNIT as u64, some);
        let mut history = self.history.lock();
        if read.is_ok() {
            for (found, unit) in some.chunks_exact(UNIT).zip(at..) {
                history.glimpse(unit, version_of(unit, found), since);
            }
            self.units_verified += count;
        }
        history.look_away(since);
        drop(history);
        if let Err(error) = read {
            self.excuse(&error);
        }
        self.buffer = bytes;
    }

    /// Saves the device, unless another does, and verifies what is restored of that elsewhere. Now and
    /// then it gives up first.
    fn save(&mut self, device: &Device) {
        let Some(since) = self.history.lock().begin_save() else {
            return;
        };
        let timeout = match self.random.below(4) {
            0 => self.random.below(30),
            _ => u64::MAX,
        };
        let timeout = Cell::new(timeout);
        let is_wanted = || {
            timeout.set(timeout.get().saturating_sub(1));
            timeout.get() > 0
        };
        let saved = device.save_to(Vec::new(), Path::new("image"), &is_wanted);
        let until = self.history.lock().end_save();
        match saved {
            Ok((saved, _)) => {
                let faults = faults(self.excuses.weather, &mut self.random);
                let mut random = Random(self.random.next());
                let held = image::held(&saved, &mut random, faults, |error| self.excuse(error));
                self.history.lock().saved(&held, since..until);
                self.units_verified += UNITS;
                self.saves += 1;
            }
            Err(error) if error.errno() == Errno::CANCELED && timeout.get() == 0 => {}
            Err(error) => self.excuse(&error),
        }
        self.history.lock().look_away(since);
    }

    /// Counts a failure that is excused.
    pub(super) fn excuse(&mut self, error: &Error) {
        self.failed += 1;
        let Excuses { weather, no_room } = self.excuses;
        let excused = match error {
            &Error::Damaged { page } => {
                weather == Weather::Untold || self.history.lock().is_lost(u64::from(page))
            }
            error => match error.errno().into() {
                Errno::NOSPC => no_room || weather != Weather::Fine,
                Errno::IO => weather != Weather::Fine,
                _ => false,
            },
        };
        assert!(excused, "{error}");
    }

    /// Verifies all that it owns, a page at a time.
    pub(super) fn verify_all(&mut self, device: &Device) {
        (0..UNITS / CLIENTS)
            .step_by(2)
            .for_each(|first| self.verify(device, first, 2));
    }
}
