//! What `uzram top` knows: each device's statistics, now and for some time back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;
use uzram::control::Client;
use uzram::{OperationLatencies, Stats};

use crate::base::name::Name;
use crate::runtime::rundir::{RunDir, RunRoot};
use crate::verbs::map::Cells;

/// How long a server may take to answer: one that is stuck must not hide the others.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Samples that are kept: more than a terminal is wide.
const KEPT: usize = 512;

/// Figures of a device over time, the latest last.
#[derive(Default)]
pub(super) struct History {
    /// Requests a second.
    pub(super) reads: VecDeque<u64>,
    pub(super) writes: VecDeque<u64>,
    /// Bytes.
    pub(super) memory: VecDeque<u64>,
    /// Pages a second to the backing, and back.
    pub(super) spilled: VecDeque<u64>,
    pub(super) read_back: VecDeque<u64>,
}

fn keep(samples: &mut VecDeque<u64>, sample: u64) {
    if samples.len() == KEPT {
        samples.pop_front();
    }
    samples.push_back(sample);
}

/// What a device said.
struct Sample {
    at: Instant,
    stats: Stats,
    latencies: OperationLatencies,
}

/// A device that is watched.
pub(super) struct Watched {
    pub(super) name: Name,
    pub(super) history: History,
    latest: Option<Sample>,
    /// What operations took since the sample before.
    pub(super) lately: OperationLatencies,
}

impl Watched {
    fn new(name: Name) -> Self {
        Self {
            name,
            history: History::default(),
            latest: None,
            lately: OperationLatencies::default(),
        }
    }

    /// `None` if it does not answer.
    pub(super) fn stats(&self) -> Option<&Stats> {
        self.latest.as_ref().map(|sample| &sample.stats)
    }

    fn ask(&mut self, dir: &RunDir) {
        let client = Client::connect(&dir.control_socket(), TIMEOUT);
        let asked = client.and_then(|mut client| Ok((client.stat()?, client.latencies()?)));
        let Ok((stats, latencies)) = asked else {
            self.latest = None;
            return;
        };
        let sample = Sample {
            at: Instant::now(),
            stats,
            latencies,
        };
        self.note(sample);
    }

    fn note(&mut self, now: Sample) {
        keep(&mut self.history.memory, now.stats.mem_used_total);
        if let Some(before) = &self.latest {
            let seconds = now.at.duration_since(before.at).as_secs_f64();
            let rate = |grown: u64| (grown as f64 / seconds).round() as u64;
            let (then, stats) = (&before.stats, &now.stats);
            self.lately = since(&now.latencies, &before.latencies);
            keep(&mut self.history.reads, rate(self.lately.read.count));
            keep(&mut self.history.writes, rate(self.lately.write.count));
            let spilled = stats.bd_writes.saturating_sub(then.bd_writes);
            keep(&mut self.history.spilled, rate(spilled));
            let read_back = stats.bd_reads.saturating_sub(then.bd_reads);
            keep(&mut self.history.read_back, rate(read_back));
        }
        self.latest = Some(now);
    }
}

fn since(now: &OperationLatencies, before: &OperationLatencies) -> OperationLatencies {
    OperationLatencies {
        read: now.read.since(&before.read),
        write: now.write.since(&before.write),
        discard: now.discard.since(&before.discard),
        flush: now.flush.since(&before.flush),
        eviction: now.eviction.since(&before.eviction),
        read_back: now.read_back.since(&before.read_back),
    }
}

/// All devices, or the one that was named.
pub(super) struct Watch {
    root: RunRoot,
    only: Option<Name>,
    pub(super) devices: Vec<Watched>,
    pub(super) selected: usize,
    map_cells: u64,
    /// The selected device's, if it answers.
    pub(super) map: Option<Cells>,
}

impl Watch {
    pub(super) fn new(root: &RunRoot, only: Option<&Name>) -> Result<Self> {
        if let Some(name) = only {
            root.dir(name).require_owner()?;
        }
        let mut watch = Self {
            root: root.clone(),
            only: only.cloned(),
            devices: Vec::new(),
            selected: 0,
            map_cells: 0,
            map: None,
        };
        watch.refresh()?;
        Ok(watch)
    }

    /// Asks them all.
    pub(super) fn refresh(&mut self) -> Result<()> {
        let selected = self.selected().map(|device| device.name.clone());
        let dirs = self.root.dirs()?.into_iter();
        let wanted = dirs.filter(|dir| self.only.as_ref().is_none_or(|name| name == dir.name()));
        let mut known = std::mem::take(&mut self.devices);
        for dir in wanted.collect::<Vec<_>>() {
            let at = known.iter().position(|device| device.name == *dir.name());
            let mut device = at.map_or_else(
                || Watched::new(dir.name().clone()),
                |at| known.swap_remove(at),
            );
            device.ask(&dir);
            self.devices.push(device);
        }
        let at = self
            .devices
            .iter()
            .position(|device| Some(&device.name) == selected.as_ref());
        self.selected = at.unwrap_or(0);
        self.refresh_map();
        Ok(())
    }

    /// As if these devices had said that.
    #[cfg(test)]
    pub(super) fn of(devices: &[(&str, Stats)]) -> Self {
        let devices = devices.iter().map(|(name, stats)| {
            let mut device = Watched::new(name.parse().unwrap());
            device.note(Sample {
                at: Instant::now(),
                stats: *stats,
                latencies: OperationLatencies::default(),
            });
            device
        });
        Self {
            root: RunRoot::locate().unwrap(),
            only: None,
            devices: devices.collect(),
            selected: 0,
            map_cells: 0,
            map: None,
        }
    }

    fn refresh_map(&mut self) {
        self.map = self.selected().and_then(|device| {
            let dir = self.root.dir(&device.name);
            let mut client = Client::connect(&dir.control_socket(), TIMEOUT).ok()?;
            Cells::fetch(&mut client, self.map_cells).ok()
        });
    }

    pub(super) fn selected(&self) -> Option<&Watched> {
        self.devices.get(self.selected)
    }

    /// Says how many cells a map can have; whether that is news.
    pub(super) fn set_map_cells(&mut self, cells: u64) -> bool {
        let changed = self.map_cells != cells;
        if changed {
            self.map_cells = cells;
            self.refresh_map();
        }
        changed
    }

    pub(super) fn select_next(&mut self) {
        if self.selected + 1 < self.devices.len() {
            self.selected += 1;
            self.refresh_map();
        }
    }

    pub(super) fn select_previous(&mut self) {
        if self.selected > 0 {
            self.selected -= 1;
            self.refresh_map();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_came_between_two_samples() {
        let mut device = Watched::new("a".parse().unwrap());
        let start = Instant::now();
        let sample = |seconds, bd_writes| {
            let mut stats = Stats::default();
            stats.bd_writes = bd_writes;
            Sample {
                at: start + Duration::from_secs(seconds),
                stats,
                latencies: OperationLatencies::default(),
            }
        };
        for (seconds, bd_writes) in [(0, 100), (2, 300), (3, 350), (4, 0)] {
            device.note(sample(seconds, bd_writes));
        }
        assert_eq!(device.history.spilled, [100, 50, 0]);
        assert_eq!(device.history.memory.len(), 4);
    }
}
