//! A client, which knows what its part of the device holds.

use std::sync::LazyLock;

use rustix::io::Errno;

use super::super::run::Random;
use super::super::*;
use super::{CLIENTS, RUN, UNIT, UNITS, Weather};
use crate::error::Error;

/// What units are made of, but for their beginnings: from noise to what compresses well.
static CONTENTS: LazyLock<[[u8; UNIT]; 8]> = LazyLock::new(|| {
    let mut random = Random(1);
    std::array::from_fn(|kind| {
        let mut content = [0; UNIT];
        for chunk in content.chunks_exact_mut(8) {
            let noise = [8, 6, 4, 3, 2, 2, 1, 1][kind];
            chunk[..noise].copy_from_slice(&random.next().to_le_bytes()[..noise]);
        }
        content
    })
});

/// What a unit holds: zeroes, or what a request that has this number wrote.
type Version = u32;
const ZEROES: Version = 0;

fn fill(unit: u64, version: Version, out: &mut [u8]) {
    if version == ZEROES {
        out.fill(0);
        return;
    }
    out.copy_from_slice(&CONTENTS[version as usize % 8]);
    out[..8].copy_from_slice(&unit.to_le_bytes());
    out[8..12].copy_from_slice(&version.to_le_bytes());
}

/// The version of a unit that `found` is; panics if it is none.
fn version_of(unit: u64, found: &[u8]) -> Version {
    let version = u32::from_le_bytes(found[8..12].try_into().expect("4 bytes"));
    let mut expected = [0; UNIT];
    fill(unit, version, &mut expected);
    assert!(
        *found == expected,
        "unit {unit} is not what version {version} of it is"
    );
    version
}

pub(super) struct Client {
    number: u64,
    weather: Weather,
    random: Random,
    /// What each of its units may hold: one thing, unless a request failed.
    units: Vec<Vec<Version>>,
    last_version: Version,
    buffer: Vec<u8>,
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) units_verified: u64,
}

impl Client {
    pub(super) fn new(number: u64, weather: Weather, random: Random) -> Self {
        Self {
            number,
            weather,
            random,
            units: vec![vec![ZEROES]; (UNITS / CLIENTS) as usize],
            last_version: ZEROES,
            buffer: vec![0; RUN as usize * UNIT],
            requests: 0,
            failed: 0,
            units_verified: 0,
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
        for i in 0..count {
            fill(
                at + i,
                self.last_version,
                &mut bytes[i as usize * UNIT..][..UNIT],
            );
        }
        let done = device.write(at * UNIT as u64, &bytes[..count as usize * UNIT]);
        self.buffer = bytes;
        self.note(first, count, self.last_version, &done);
    }

    fn clear(&mut self, device: &Device, first: u64, count: u64, discard: bool) {
        let (at, len) = (self.place(first) * UNIT as u64, count * UNIT as u64);
        let done = if discard {
            device.discard(at, len)
        } else {
            device.write_zeroes(at, len)
        };
        self.note(first, count, ZEROES, &done);
    }

    /// Notes what a request has made of its units, or may have.
    fn note(&mut self, first: u64, count: u64, version: Version, done: &crate::Result<()>) {
        let units = &mut self.units[first as usize..(first + count) as usize];
        match done {
            Ok(()) => units.fill(vec![version]),
            Err(error) => {
                self.excuse(error);
                let units = &mut self.units[first as usize..(first + count) as usize];
                units.iter_mut().for_each(|unit| unit.push(version));
            }
        }
    }

    fn verify(&mut self, device: &Device, first: u64, count: u64) {
        let (at, mut bytes) = (self.place(first), std::mem::take(&mut self.buffer));
        match device.read(at * UNIT as u64, &mut bytes[..count as usize * UNIT]) {
            Ok(()) => {
                for (i, found) in bytes.chunks_exact(UNIT).take(count as usize).enumerate() {
                    let version = version_of(at + i as u64, found);
                    let may_be = &mut self.units[first as usize + i];
                    assert!(may_be.contains(&version), "{version} is none of {may_be:?}");
                    *may_be = vec![version];
                }
                self.units_verified += count;
            }
            Err(error) => self.excuse(&error),
        }
        self.buffer = bytes;
    }

    /// Reads what is anybody's: some version of it.
    fn look_elsewhere(&mut self, device: &Device, count: u64) {
        let (at, mut bytes) = (
            self.random.below(UNITS - count),
            std::mem::take(&mut self.buffer),
        );
        match device.read(at * UNIT as u64, &mut bytes[..count as usize * UNIT]) {
            Ok(()) => {
                let units = bytes.chunks_exact(UNIT).take(count as usize);
                for (found, unit) in units.zip(at..) {
                    version_of(unit, found);
                }
                self.units_verified += count;
            }
            Err(error) => self.excuse(&error),
        }
        self.buffer = bytes;
    }

    /// Counts a failure that this world's weather excuses.
    fn excuse(&mut self, error: &Error) {
        self.failed += 1;
        let excused = match error {
            Error::Damaged { .. } => self.weather == Weather::Untold,
            error => {
                let is_known = [Errno::NOSPC, Errno::IO].contains(&error.errno());
                is_known && self.weather != Weather::Fine
            }
        };
        assert!(excused, "{error}");
    }

    /// Verifies all that it owns, a page at a time.
    pub(super) fn verify_all(&mut self, device: &Device) {
        (0..self.units.len() as u64)
            .step_by(2)
            .for_each(|first| self.verify(device, first, 2));
    }
}
