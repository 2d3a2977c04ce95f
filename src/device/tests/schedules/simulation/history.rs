//! The naive model: what each unit holds, and what it held for as long as somebody wants to know.

use std::collections::BTreeSet;
use std::ops::Range;

use super::content::{Version, ZEROES};
use super::{UNIT, UNITS};
use crate::units::PAGE_SIZE;

/// A point in time: each thing that is noted has one of its own.
pub(super) type Moment = u64;

const UNITS_OF_PAGE: u64 = (PAGE_SIZE / UNIT) as u64;

/// When a unit may have held a version.
#[derive(Clone, Debug)]
struct Period {
    version: Version,
    from: Moment,
    /// [`Moment::MAX`] if it may still.
    to: Moment,
}

impl Period {
    fn is_open(&self) -> bool {
        self.to == Moment::MAX
    }
}

/// What the device holds. One client writes to a unit, so its requests follow each other; a request that
/// has failed may have happened.
pub(super) struct History {
    now: Moment,
    units: Vec<Vec<Period>>,
    /// Since when those want to know who look.
    looking: Vec<Moment>,
    is_being_saved: bool,
    /// Pages that are truly damaged.
    lost: BTreeSet<u64>,
}

impl History {
    pub(super) fn new() -> Self {
        let mut blank = Self {
            now: 0,
            units: Vec::new(),
            looking: Vec::new(),
            is_being_saved: false,
            lost: BTreeSet::new(),
        };
        blank.begin_as(&[ZEROES; UNITS as usize]);
        blank
    }

    /// The device begins as this.
    pub(super) fn begin_as(&mut self, versions: &[Version]) {
        let always = |&version: &Version| {
            vec![Period {
                version,
                from: 0,
                to: Moment::MAX,
            }]
        };
        self.units = versions.iter().map(always).collect();
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// A request begins that is to make units this.
    pub(super) fn begin(&mut self, units: Range<u64>, version: Version) {
        let (from, to) = (self.tick(), Moment::MAX);
        let wanted = self.looking.iter().copied().min().unwrap_or(from);
        for unit in &mut self.units[units.start as usize..units.end as usize] {
            unit.retain(|period| period.to >= wanted);
            unit.push(Period { version, from, to });
        }
    }

    /// The request that began last on these units has succeeded.
    pub(super) fn succeed(&mut self, units: Range<u64>) {
        let now = self.tick();
        for unit in &mut self.units[units.start as usize..units.end as usize] {
            let (_, before) = unit.split_last_mut().expect("it began");
            close(before, now);
        }
        let pages = units.start.div_ceil(UNITS_OF_PAGE)..units.end / UNITS_OF_PAGE;
        for page in pages {
            self.lost.remove(&page);
        }
    }

    /// The client of a unit, which is not writing to it, has found this in it.
    pub(super) fn find(&mut self, unit: u64, version: Version) {
        let now = self.tick();
        let periods = &mut self.units[unit as usize];
        let is_it = |period: &Period| period.is_open() && period.version == version;
        let Some(at) = periods.iter().rposition(is_it) else {
            panic!("unit {unit} is {version}, which is none of {periods:?}");
        };
        // What came later has failed, and has not happened.
        periods.truncate(at + 1);
        close(&mut periods[..at], now);
    }

    /// Somebody begins to look at what is anybody's.
    pub(super) fn look(&mut self) -> Moment {
        let now = self.tick();
        self.looking.push(now);
        now
    }

    /// Whoever has looked since then no longer does.
    pub(super) fn look_away(&mut self, since: Moment) {
        self.looking.retain(|&other| other != since);
    }

    /// A unit was found to be this at some time since `since`.
    pub(super) fn glimpse(&self, unit: u64, version: Version, since: Moment) {
        let seen = self.held(unit, version, &(since..Moment::MAX));
        assert!(
            !seen.is_empty(),
            "unit {unit} is {version}, which since {since} is none of {:?}",
            self.units[unit as usize]
        );
    }

    /// When, of a time, a unit may have held a version.
    fn held(&self, unit: u64, version: Version, within: &Range<Moment>) -> Vec<Range<Moment>> {
        let all = self.units[unit as usize].iter();
        let held = all.filter(|period| period.version == version);
        let held = held.map(|period| period.from.max(within.start)..period.to.min(within.end));
        held.filter(|held| held.start <= held.end).collect()
    }

    /// Somebody begins to save the device, unless somebody does.
    pub(super) fn begin_save(&mut self) -> Option<Moment> {
        let is_first = !std::mem::replace(&mut self.is_being_saved, true);
        is_first.then(|| self.look())
    }

    /// The save has ended; what may be in it is remembered until [`History::look_away`].
    pub(super) fn end_save(&mut self) -> Moment {
        self.is_being_saved = false;
        self.tick()
    }

    /// These are what the units of the device were at one time.
    pub(super) fn saved(&self, versions: &[Version], within: Range<Moment>) {
        let mut times = vec![within.clone()];
        for (unit, &version) in (0..).zip(versions) {
            let held = self.held(unit, version, &within);
            let both = |a: &Range<Moment>, b: &Range<Moment>| {
                let both = a.start.max(b.start)..a.end.min(b.end);
                (both.start <= both.end).then_some(both)
            };
            let all = times
                .iter()
                .flat_map(|time| held.iter().map(move |held| both(time, held)));
            let now: Vec<_> = all.flatten().collect();
            assert!(
                !now.is_empty(),
                "unit {unit} is {version} in an image of {within:?}, and those before are of {times:?}: \
                 {:?}",
                self.units[unit as usize]
            );
            times = now;
        }
    }

    /// Of these pages the records are damaged, and of no others.
    pub(super) fn lose(&mut self, pages: BTreeSet<u64>) {
        self.lost = pages;
    }

    pub(super) fn is_lost(&self, page: u64) -> bool {
        self.lost.contains(&page)
    }

    pub(super) fn is_any_lost(&self) -> bool {
        !self.lost.is_empty()
    }
}

fn close(periods: &mut [Period], now: Moment) {
    let open = periods.iter_mut().filter(|period| period.is_open());
    open.for_each(|period| period.to = now);
}
