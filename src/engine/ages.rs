//! How long ago pages were last accessed, to the precision that a tag of four bits allows.
//!
//! An exponential histogram of at most fourteen generations: the older, the longer. One is open;
//! when it has lasted long enough, and was used, it is closed and another opened. When no tag is
//! left for that, the two neighbours are made one that then say least wrongly how old their pages
//! are: a sweep gives the slots of the older the tag of the younger. A generation lasts at least a
//! thousand times as long as the last sweep took, so that sweeping takes less than a thousandth of
//! a core, however large the device; on a small one, a second.
//!
//! Invariants:
//! 1. A page whose slot has the tag of a closed generation was last accessed before its `end`, and
//!    since no earlier than its `begin` as far as is known. So a page is never taken for older than
//!    it is.
//! 2. Only the writeback thread opens, closes and merges. It does nothing while the device is not
//!    used: the first access of a generation wakes it.
//!
//! Locks the history, and while that is held one shard after another.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::layout::ShardIndex;
use super::shards::Shards;
use crate::shard::{AgeRanks, AgeTag, AgeTags, Present, Slot};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use crate::time::Timepiece;
use crate::waker::Waker;

/// The shortest generation.
const SHORTEST: Duration = Duration::from_secs(1);

/// Times the duration of a sweep that a generation lasts at least.
const SWEEP_COST: u32 = 1000;

/// A generation that is over. Times are a [`crate::time::Timepiece`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Generation {
    tag: AgeTag,
    begin: Duration,
    end: Duration,
}

/// What a device remembers of its generations. A merge that was under way begins anew: what it has not swept has the
/// tag of a generation that is still known.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AgesRecord {
    /// Tag, begin and end of each that is over, from old to young.
    closed: Vec<(u8, Duration, Duration)>,
    open: u8,
    used_since: Option<Duration>,
    len: Duration,
}

/// Two generations that become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Merge {
    older: AgeTag,
    younger: AgeTag,
    /// Where the sweep is.
    shard: ShardIndex,
    slot: u32,
    /// How long it has taken so far.
    took: Duration,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing, for so long; nothing until the generation is used if `None`.
    Rest(Option<Duration>),
    Merge(Merge),
    Open(AgeTag),
}

/// When pages were last accessed, as far as their generations tell.
pub(crate) struct AccessTimes {
    closed: Vec<(AgeTag, Duration)>,
    now: Duration,
}

impl AccessTimes {
    /// The latest that a page of a generation can have been accessed.
    pub(crate) fn latest(&self, tag: AgeTag) -> Duration {
        let closed = self.closed.iter().find(|(closed, _)| *closed == tag);
        closed.map_or(self.now, |(_, end)| *end)
    }
}

/// The generations of a device.
#[derive(Debug)]
struct History {
    /// From old to young.
    closed: Vec<Generation>,
    open: AgeTag,
    /// When the open one was found to be used.
    used_since: Option<Duration>,
    /// How long it is to last.
    len: Duration,
    merge: Option<Merge>,
}

impl History {
    fn new(first: AgeTag) -> Self {
        Self {
            closed: Vec::new(),
            open: first,
            used_since: None,
            len: SHORTEST,
            merge: None,
        }
    }

    /// What to do at `now`, given whether the open generation is used.
    fn next(&mut self, is_used: bool, now: Duration) -> Step {
        if let Some(merge) = self.merge {
            return Step::Merge(merge);
        }
        if !is_used {
            return Step::Rest(None);
        }
        let due = *self.used_since.get_or_insert(now) + self.len;
        if now < due {
            return Step::Rest(Some(due - now));
        }
        let taken = |tag| tag == self.open || self.closed.iter().any(|g| g.tag == tag);
        if let Some(free) = AgeTag::all().find(|&tag| !taken(tag)) {
            return Step::Open(free);
        }
        let at = self.least_wrong_merge(now);
        let merge = Merge {
            older: self.closed[at].tag,
            younger: self.closed[at + 1].tag,
            shard: ShardIndex(0),
            slot: 0,
            took: Duration::ZERO,
        };
        self.merge = Some(merge);
        Step::Merge(merge)
    }

    /// The index of the older of the two closed neighbours that, as one, span the least time
    /// compared to how long ago they ended.
    fn least_wrong_merge(&self, now: Duration) -> usize {
        let error = |pair: &[Generation]| {
            let span = pair[1].end.saturating_sub(pair[0].begin);
            span.as_secs_f64() / now.saturating_sub(pair[1].end).max(SHORTEST).as_secs_f64()
        };
        let errors = self.closed.windows(2).map(error).enumerate();
        let least = errors.min_by(|(_, a), (_, b)| a.total_cmp(b));
        least.map_or(0, |(at, _)| at)
    }

    /// The open generation ended at `end`, and `tag` is the open one.
    fn opened(&mut self, tag: AgeTag, end: Duration) {
        let closed = Generation {
            tag: std::mem::replace(&mut self.open, tag),
            begin: self.used_since.take().unwrap_or(end),
            end,
        };
        self.closed.push(closed);
    }

    /// No slot has the tag of the older generation any more.
    fn merged(&mut self, merge: Merge) {
        self.merge = None;
        self.len = SHORTEST.max(merge.took * SWEEP_COST);
        let older = self.closed.iter().position(|g| g.tag == merge.older);
        if let Some(at) = older {
            let older = self.closed.remove(at);
            self.closed[at].begin = older.begin;
        }
    }

    fn record(&self) -> AgesRecord {
        let closed = self.closed.iter();
        AgesRecord {
            closed: closed.map(|g| (g.tag.number(), g.begin, g.end)).collect(),
            open: self.open.number(),
            used_since: self.used_since,
            len: self.len,
        }
    }

    /// What a record says, as far as it makes sense.
    fn of_record(record: &AgesRecord) -> Option<Self> {
        let closed = record.closed.iter().map(|&(tag, begin, end)| {
            let tag = AgeTag::of_number(tag)?;
            Some(Generation { tag, begin, end })
        });
        Some(Self {
            closed: closed.collect::<Option<_>>()?,
            used_since: record.used_since,
            len: record.len.max(SHORTEST),
            ..Self::new(AgeTag::of_number(record.open)?)
        })
    }

    /// When pages of each generation were accessed at the latest, at `now`.
    fn latest(&self, now: Duration) -> AccessTimes {
        AccessTimes {
            closed: self.closed.iter().map(|g| (g.tag, g.end)).collect(),
            now,
        }
    }

    /// The generations that ended at least `age` before `now`.
    fn older_than(&self, age: Duration, now: Duration) -> AgeTags {
        let mut tags = AgeTags::default();
        for generation in &self.closed {
            if generation.end.saturating_add(age) <= now {
                tags.insert(generation.tag);
            }
        }
        tags
    }
}

/// The generations, and when they are next to be looked at.
pub(crate) struct Ages {
    present: Arc<Present>,
    history: Mutex<History>,
    /// Nanoseconds on the device's timepiece before which there is nothing to do.
    due: AtomicU64,
    /// Wakes the thread that keeps the ages.
    waker: Arc<Waker>,
    /// Whether a generation was opened that is not remembered.
    is_changed: AtomicBool,
}

impl Ages {
    /// A device's first generation; `waker` wakes its writeback thread.
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        let first = AgeTag::all().next().expect("there are fourteen");
        Self {
            present: Arc::new(Present::new(first, Arc::clone(&waker))),
            history: Mutex::new(History::new(first)),
            due: AtomicU64::new(0),
            waker,
            is_changed: AtomicBool::new(false),
        }
    }

    pub(super) fn present(&self) -> Arc<Present> {
        Arc::clone(&self.present)
    }

    /// Whether there is something to remember since this was asked last.
    pub(super) fn take_change(&self) -> bool {
        self.is_changed.swap(false, Relaxed)
    }

    pub(super) fn record(&self) -> AgesRecord {
        self.history.lock().record()
    }

    /// Goes on where a record ends. What pages were accessed in since is the open generation, or one that is not
    /// known, which is as good: no page is taken for older than it is.
    pub(super) fn adopt(&self, record: &AgesRecord) {
        if let Some(history) = History::of_record(record) {
            self.present.open(history.open);
            *self.history.lock() = history;
        }
    }

    /// How old the generations are beside each other.
    pub(super) fn ranks(&self) -> AgeRanks {
        let history = self.history.lock();
        let closed = history.closed.iter().map(|generation| generation.tag);
        AgeRanks::of(closed.chain([history.open]))
    }

    /// Whether [`Ages::keep`] has something to do.
    pub(crate) fn are_due(&self, time: &Timepiece) -> bool {
        let due = || Duration::from_nanos(self.due.load(Relaxed));
        self.present.is_used() && time.now() >= due()
    }

    /// Opens, closes and merges generations as it is time to, until `interrupted`; returns how long
    /// it is until there is more to do, or `None` if that comes with a wake. For the writeback
    /// thread.
    pub(crate) fn keep(
        &self,
        shards: &Shards,
        time: &Timepiece,
        interrupted: impl Fn() -> bool,
    ) -> Option<Duration> {
        // Who holds it marks pages, and wakes us when that is done.
        let mut history = self.history.try_lock()?;
        loop {
            let now = time.now();
            let rest = match history.next(self.present.is_used(), now) {
                Step::Rest(rest) => rest,
                Step::Open(tag) => {
                    let end = self.open_generation(tag, shards, time);
                    history.opened(tag, end);
                    self.is_changed.store(true, Relaxed);
                    continue;
                }
                Step::Merge(mut merge) => {
                    if go_on_merging(&mut merge, shards, time, &interrupted) {
                        history.merged(merge);
                        continue;
                    }
                    history.merge = Some(merge);
                    Some(Duration::ZERO)
                }
            };
            let due = now + rest.unwrap_or_default();
            self.due.store(due.as_nanos() as u64, Relaxed);
            return rest;
        }
    }

    /// Has accesses belong to another generation; returns when none belongs to the one before any
    /// more.
    fn open_generation(&self, tag: AgeTag, shards: &Shards, time: &Timepiece) -> Duration {
        self.present.open(tag);
        for index in shards.layout.shards() {
            // Whoever looked at the tag before holds the lock, or has written it.
            drop(shards.lock(index));
        }
        time.now()
    }

    /// When pages were accessed.
    pub(crate) fn access_times(&self, time: &Timepiece) -> AccessTimes {
        let history = self.history.lock();
        let times = history.latest(time.now());
        drop(history);
        // The writeback thread may have come to keep the ages meanwhile.
        self.waker.wake();
        times
    }

    /// Calls `look` with the generations of pages that are known not to have been accessed for so
    /// long; with `None` for any age. They mean that only until it returns.
    pub(crate) fn with_old<T>(
        &self,
        time: &Timepiece,
        age: Option<Duration>,
        look: impl FnOnce(Option<AgeTags>) -> T,
    ) -> T {
        let Some(age) = age else {
            return look(None);
        };
        let history = self.history.lock();
        let looked = look(Some(history.older_than(age, time.now())));
        drop(history);
        // The writeback thread may have come to keep the ages meanwhile.
        self.waker.wake();
        looked
    }

    /// Marks the resident pages as idle that are known not to have been accessed for so long, or
    /// all; returns how many.
    pub(crate) fn mark_idle(
        &self,
        shards: &Shards,
        time: &Timepiece,
        age: Option<Duration>,
    ) -> u64 {
        self.with_old(time, age, |old| {
            let mut marked = 0;
            shards.change_notes(|_, _, slot| {
                let is_wanted = |age| old.is_none_or(|old| old.contains(age));
                if !slot.age().is_some_and(is_wanted) {
                    return slot;
                }
                marked += 1;
                slot.marked_idle()
            });
            marked
        })
    }
}

/// Sweeps on; returns whether that is the end of it.
fn go_on_merging(
    merge: &mut Merge,
    shards: &Shards,
    time: &Timepiece,
    interrupted: &impl Fn() -> bool,
) -> bool {
    let began = time.now();
    let retag = |slot: Slot| {
        if slot.age() == Some(merge.older) {
            slot.with_age(merge.younger)
        } else {
            slot
        }
    };
    let (mut shard, mut at) = (merge.shard, merge.slot);
    let count = shards.layout.shards().count() as u32;
    let mut done = false;
    while !done {
        let end = shards.layout.slots(shard);
        at = shards
            .lock(shard)
            .change_notes(at..end, |_, slot| retag(slot));
        if at >= end {
            (shard, at) = (ShardIndex(shard.0 + 1), 0);
        }
        done = shard.0 == count;
        if !done && interrupted() {
            break;
        }
    }
    (merge.shard, merge.slot) = (shard, at);
    merge.took += time.now().saturating_sub(began);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has a history go through steps at times that are `apart`, as the writeback thread would.
    /// `pages` are the times at which single pages were accessed, with their tags.
    struct Model {
        history: History,
        pages: Vec<(Duration, AgeTag)>,
    }

    impl Model {
        fn new() -> Self {
            Self {
                history: History::new(AgeTag::all().next().expect("some")),
                pages: Vec::new(),
            }
        }

        fn access(&mut self, now: Duration) {
            self.pages.push((now, self.history.open));
        }

        fn keep(&mut self, now: Duration) {
            loop {
                let open = self.history.open;
                let is_used = self.pages.iter().any(|&(_, tag)| tag == open);
                match self.history.next(is_used, now) {
                    Step::Rest(_) => return,
                    Step::Open(tag) => self.history.opened(tag, now),
                    Step::Merge(merge) => {
                        for (_, tag) in &mut self.pages {
                            if *tag == merge.older {
                                *tag = merge.younger;
                            }
                        }
                        self.history.merged(merge);
                    }
                }
            }
        }

        /// The least age that the page accessed at `accessed` has for certain.
        fn known_age(&self, tag: AgeTag, now: Duration) -> Option<Duration> {
            let generation = self.history.closed.iter().find(|g| g.tag == tag);
            generation.map(|generation| now - generation.end)
        }
    }

    #[test]
    fn no_page_is_ever_taken_for_older_than_it_is_nor_for_much_younger() {
        let mut model = Model::new();
        const DAY: u64 = 24 * 3600;
        for second in 0..DAY {
            let now = Duration::from_secs(second);
            model.keep(now);
            model.access(now);
            assert!(model.history.closed.len() <= 14);
            if second % 977 == 0 {
                for &(accessed, tag) in &model.pages {
                    let (age, known) = (now - accessed, model.known_age(tag, now));
                    assert!(known.is_none_or(|known| known <= age), "{age:?} {known:?}");
                }
            }
        }
        let now = Duration::from_secs(DAY);
        model.keep(now);
        let mut worst = 1.0f64;
        for &(accessed, tag) in &model.pages {
            let age = (now - accessed).as_secs_f64();
            let known = model.known_age(tag, now).unwrap_or_default().as_secs_f64();
            worst = worst.max(age / (known + 2.0));
        }
        assert!(worst < 3.0, "a page is {worst} times as old as is known");
        let ends = model.history.closed.windows(2);
        assert!(ends.into_iter().all(|pair| pair[0].end <= pair[1].begin));
    }

    #[test]
    fn nothing_happens_while_nothing_is_accessed() {
        let mut history = History::new(AgeTag::all().next().expect("some"));
        let hour = Duration::from_secs(3600);
        assert_eq!(history.next(false, hour), Step::Rest(None));
        // What was opened an hour ago begins when it is used.
        assert_eq!(history.next(true, hour), Step::Rest(Some(SHORTEST)));
        let Step::Open(tag) = history.next(true, hour + SHORTEST) else {
            panic!("it is time");
        };
        history.opened(tag, hour + SHORTEST);
        assert_eq!(history.closed[0].begin, hour);
        assert_eq!(history.next(false, 2 * hour), Step::Rest(None));
    }

    #[test]
    fn generations_are_as_long_as_sweeping_is_slow() {
        let mut model = Model::new();
        for second in 0..20 {
            model.access(Duration::from_secs(second));
            model.keep(Duration::from_secs(second));
        }
        let now = Duration::from_secs(20);
        let merge = Merge {
            older: model.history.closed[0].tag,
            younger: model.history.closed[1].tag,
            shard: ShardIndex(0),
            slot: 0,
            took: Duration::from_millis(30),
        };
        model.history.merged(merge);
        model.history.used_since = None;
        let rest = model.history.next(true, now);
        assert_eq!(rest, Step::Rest(Some(Duration::from_secs(30))));
    }
}
