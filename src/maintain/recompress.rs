//! Recompression: objects that have lain a while are compressed again, with an algorithm that
//! takes longer and makes them smaller (zram's `recompress`).
//!
//! Pages are chosen a few at a time: copied and marked under their shard's lock, recompressed
//! without it, and stored under it again if they are still marked (`shard::selected`). Algorithms
//! are tried in the order of their priority, those above the one that made the object, up to the
//! first that makes it lie in a smaller size class. Where the last of them is done with a page,
//! that is noted in its slot, so that it is not tried again until it is written or there is
//! another algorithm to try.
//!
//! Whoever asks does the work. [`Recompressor::one_at_a_time`] makes sure that it is one at a time, step
//! by step.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::setpriority_process;

use super::periodic::Periodic;
use crate::algorithm::{Algorithm, Priority};
use crate::codec::{self, Codec, Compression, MAX_COMPRESSED_LEN};
use crate::engine::{Engine, ShardIndex};
use crate::error::{Error, Result};
use crate::recompression::Recompression;
use crate::shard::{AgeTags, Purpose, Shard, Slot, SlotIndex, SlotState};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Mutex, MutexGuard};
use crate::units::{PAGE_SIZE, Page};

/// Pages of a step: with a strong algorithm some milliseconds' work.
const STEP: usize = 16;

/// Slots that are looked at in a step, as a lock is held.
const LOOKED_AT_ONCE: usize = 4096;
const SEARCHED_AT_ONCE: u32 = 1 << 19;

/// The niceness that leaves a core to whoever else wants it.
const NICEST: i32 = 19;

/// Memory for a step.
pub(crate) struct Scratch {
    chosen: Vec<Chosen>,
    /// Objects as they were.
    objects: Vec<u8>,
    /// Objects as they have become.
    made: Vec<u8>,
}

/// A page of a step.
struct Chosen {
    index: SlotIndex,
    before: Slot,
    codec: Codec,
    /// Its object in [`Scratch::objects`].
    object: Range<usize>,
    outcome: Outcome,
}

/// What has become of an object.
enum Outcome {
    /// It cannot be read, which a read will complain of, or would not be below the threshold.
    LeftAlone,
    /// No algorithm makes it smaller.
    NoGain,
    /// In [`Scratch::made`]; `last` if no other algorithm is to be tried on it.
    Made {
        codec: Codec,
        bytes: Range<usize>,
        last: bool,
    },
}

/// Which algorithms to try.
pub(crate) struct Plan {
    /// In this order.
    steps: Vec<(Priority, Compression)>,
    /// The last priority that there is an algorithm of.
    top: Priority,
    /// Whether to try them on all objects, whatever made those and was tried on them.
    again: bool,
}

impl Plan {
    /// What a request means on a device with these algorithms.
    ///
    /// # Errors
    /// [`Error::Refused`] (EINVAL) if it names a priority that has none, or there is none at all.
    pub(crate) fn new(request: &Recompression, set: &[(Priority, Compression)]) -> Result<Self> {
        let none = |which: &str| Error::Refused {
            what: "recompress",
            reason: format!("there is no algorithm {which}: set recomp_algorithm first"),
            errno: Errno::INVAL.into(),
        };
        let top = set.last().map(|(priority, _)| *priority);
        let is_named = |algorithm: Algorithm, named: Algorithm| {
            let is_name = named == named.at_default_level();
            algorithm == named || is_name && algorithm.name() == named.name()
        };
        let mut steps = set.to_vec();
        if let Some(wanted) = request.priority {
            steps.retain(|(priority, _)| *priority == wanted);
        }
        if let Some(named) = request.algorithm {
            steps.retain(|(_, how)| is_named(how.algorithm, named));
        }
        let again = steps.is_empty();
        match (request.algorithm, request.priority) {
            (Some(named), None) if again => {
                let priority = top.unwrap_or(Priority::SECONDARY[0]);
                steps.push((priority, named.into()));
            }
            (_, Some(priority)) if again => {
                return Err(none(&format!("of priority {}", priority.number())));
            }
            _ if again => return Err(none("for it")),
            _ => {}
        }
        Ok(Self {
            top: top.unwrap_or(Priority::SECONDARY[0]),
            steps,
            again,
        })
    }

    /// Whether it can do more for an object that an algorithm of such a priority made.
    fn goes_beyond(&self, priority: Priority) -> bool {
        let last = self.steps.last();
        self.again || last.is_some_and(|(last, _)| *last > priority)
    }

    /// Whether it ends with the last algorithm there is.
    fn reaches_top(&self) -> bool {
        let last = self.steps.last();
        last.is_some_and(|(last, _)| *last == self.top)
    }
}

/// What a step has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Pages that have become smaller.
    pub(crate) smaller: u64,
    /// Whether there was no memory for some, which stay as they were.
    pub(crate) refused: bool,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            chosen: Vec::with_capacity(STEP),
            objects: Vec::with_capacity(STEP * PAGE_SIZE),
            made: vec![0; STEP * MAX_COMPRESSED_LEN],
        }
    }
}

/// What is wanted of a slot's page.
pub(crate) struct Wanted<'a> {
    pub(crate) request: &'a Recompression,
    pub(crate) plan: &'a Plan,
    /// How long it must not have been accessed.
    pub(crate) age: Option<Duration>,
}

impl Wanted<'_> {
    fn includes(&self, shard: &Shard, slot: Slot, old: Option<AgeTags>) -> bool {
        let SlotState::Resident { len, .. } = slot.state() else {
            return false;
        };
        let is_old = || {
            slot.age()
                .is_some_and(|age| old.is_none_or(|old| old.contains(age)))
        };
        self.request.kind.includes(slot)
            && len >= self.request.threshold
            && (!slot.is_tried() || self.plan.again)
            && !slot.is_selected()
            && is_old()
            && self.plan.goes_beyond(shard.priority(slot))
    }
}

/// What recompresses a device's pages.
pub(crate) struct Recompressor {
    engine: Arc<Engine>,
    /// Held by whoever has pages marked as being recompressed.
    one_at_a_time: Mutex<()>,
}

impl Recompressor {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            one_at_a_time: Mutex::default(),
        }
    }

    /// Keeps pages from being marked while what it returns lives.
    pub(crate) fn pause(&self) -> MutexGuard<'_, ()> {
        self.one_at_a_time.lock()
    }

    /// Recompresses pages until none is left or the device stops; returns how many have become
    /// smaller.
    ///
    /// # Errors
    /// [`Error::Refused`] (EINTR) if the device stops; [`Error::NoSpace`] if there is no backing
    /// and no memory to make anything smaller in, not after compaction either.
    pub(crate) fn recompress(&self, wanted: &Wanted<'_>) -> Result<u64> {
        let mut scratch = Scratch::new();
        let mut left = wanted.request.max_pages;
        let (mut smaller, mut compacted) = (0, false);
        for index in self.engine.shards.layout.shards() {
            let slots = self.engine.shards.layout.slots(index);
            let mut at = 0;
            while at < slots && left > 0 {
                if self.engine.is_stopping() {
                    return Err(stopping());
                }
                let most = STEP.min(usize::try_from(left).unwrap_or(STEP));
                let one_at_a_time = self.one_at_a_time.lock();
                let next = self.choose(wanted, index, at..slots, most, &mut scratch);
                scratch.recompress(&self.engine, wanted);
                let settled = self.settle_recompressed(index, &scratch);
                drop(one_at_a_time);
                smaller += settled.smaller;
                // Where pages are evicted there is room again soon; those refused stay as they are.
                if settled.refused && !self.engine.limit.evicts() {
                    if compacted {
                        return Err(Error::NoSpace("there is no memory to recompress in"));
                    }
                    // They are chosen again.
                    self.engine.compact();
                    compacted = true;
                    continue;
                }
                left -= scratch.chosen.len() as u64;
                at = next;
            }
        }
        Ok(smaller)
    }

    /// Chooses pages from the start of a range of slots on; returns where to go on.
    pub(crate) fn choose(
        &self,
        wanted: &Wanted<'_>,
        index: ShardIndex,
        slots: Range<u32>,
        most: usize,
        scratch: &mut Scratch,
    ) -> u32 {
        scratch.chosen.clear();
        scratch.objects.clear();
        let end = slots.end.min(slots.start.saturating_add(SEARCHED_AT_ONCE));
        let choose = |old| {
            let mut shard = self.engine.shards.lock(index);
            let mut at = slots.start;
            for _ in 0..LOOKED_AT_ONCE {
                let Some(used) = shard.next_used(at..end) else {
                    return end;
                };
                if wanted.includes(&shard, shard.slot(used), old) {
                    if scratch.chosen.len() == most {
                        return used.0;
                    }
                    scratch.take(&mut shard, used);
                }
                at = used.0 + 1;
            }
            at
        };
        self.engine
            .ages
            .with_old(&self.engine.time, wanted.age, choose)
    }

    /// Stores what has become smaller.
    pub(crate) fn settle_recompressed(&self, index: ShardIndex, scratch: &Scratch) -> Settled {
        let mut settled = Settled::default();
        if scratch.chosen.is_empty() {
            return settled;
        }
        let mut shard = self.engine.shards.lock(index);
        for chosen in &scratch.chosen {
            let result = match &chosen.outcome {
                Outcome::LeftAlone => {
                    shard.unselect(chosen.index, Purpose::Recompress, chosen.before);
                    Ok(false)
                }
                Outcome::NoGain => {
                    shard.settle_recompressed(chosen.index, chosen.before, None, true)
                }
                Outcome::Made { codec, bytes, last } => {
                    let object = Some((*codec, &scratch.made[bytes.clone()]));
                    shard.settle_recompressed(chosen.index, chosen.before, object, *last)
                }
            };
            settled.smaller += u64::from(result == Ok(true));
            settled.refused |= result.is_err();
        }
        self.engine.unlock(shard);
        self.engine
            .counts
            .recompressed
            .fetch_add(settled.smaller, Relaxed);
        settled
    }
}

impl Scratch {
    fn take(&mut self, shard: &mut Shard, index: SlotIndex) {
        shard.select(index, Purpose::Recompress, &mut |object| {
            let start = self.objects.len();
            self.objects.extend_from_slice(object.data);
            self.chosen.push(Chosen {
                index,
                before: object.slot,
                codec: object.codec,
                object: start..self.objects.len(),
                outcome: Outcome::LeftAlone,
            });
        });
    }

    /// Compresses the chosen objects again.
    pub(crate) fn recompress(&mut self, engine: &Engine, wanted: &Wanted<'_>) {
        let mut start = 0;
        for chosen in &mut self.chosen {
            let object = &self.objects[chosen.object.clone()];
            let mut page = [0; PAGE_SIZE];
            if engine
                .codecs
                .decompress(chosen.codec, object, &mut page)
                .is_err()
            {
                continue;
            }
            let priority = chosen.codec.priority(object[0]);
            let out = &mut self.made[start..];
            chosen.outcome = match try_in_turn(engine, wanted, priority, object.len(), &page, out) {
                Tried::Smaller(priority, codec, len) => {
                    let bytes = start..start + len;
                    start = bytes.end;
                    let last = priority == wanted.plan.top;
                    Outcome::Made { codec, bytes, last }
                }
                Tried::AboveThreshold => Outcome::LeftAlone,
                Tried::NoGain if wanted.plan.reaches_top() => Outcome::NoGain,
                Tried::NoGain => Outcome::LeftAlone,
            };
        }
    }
}

/// What trying algorithms on a page has come to.
enum Tried {
    Smaller(Priority, Codec, usize),
    /// Smaller, but not below the threshold.
    AboveThreshold,
    NoGain,
}

/// Tries the algorithms of a plan on a page whose object is `len` bytes that one of `priority` made.
fn try_in_turn(
    engine: &Engine,
    wanted: &Wanted<'_>,
    priority: Priority,
    len: usize,
    page: &Page,
    out: &mut [u8],
) -> Tried {
    let (plan, threshold) = (wanted.plan, wanted.request.threshold);
    let dictionaries = &engine.codecs.dictionaries;
    let mut tried = Tried::NoGain;
    for &(step, how) in &plan.steps {
        if step <= priority && !plan.again {
            continue;
        }
        let most = engine.shards.max_compressed_len();
        let Some((codec, made)) = codec::compress(how, step, dictionaries, page, out, most) else {
            continue;
        };
        if engine.shards.object_size(made) >= engine.shards.object_size(len) {
            continue;
        }
        if threshold == 0 || made < threshold {
            return Tried::Smaller(step, codec, made);
        }
        tried = Tried::AboveThreshold;
    }
    tried
}

impl Recompressor {
    /// Recompresses pages that were not accessed for `age`, in a thread of its own and in time that
    /// nobody else wants.
    ///
    /// # Errors
    /// [`Error::Io`] if there cannot be another thread.
    pub(crate) fn run_in_background(this: &Arc<Self>, age: Duration) -> Result<Periodic> {
        let this = Arc::clone(this);
        let period = (age / 8).clamp(Duration::from_secs(1), Duration::from_secs(60));
        Periodic::start("uzram-recompress", period, move |rounds| {
            // On Linux this is the thread's own.
            if let Err(error) = setpriority_process(None, NICEST) {
                tracing::warn!("recompression competes with other work: {error}");
            }
            for () in rounds {
                this.recompress_old(age);
            }
        })
    }

    fn recompress_old(&self, age: Duration) {
        let request = &Recompression::ALL;
        if let Ok(plan) = &Plan::new(request, &self.engine.codecs.secondary()) {
            let wanted = Wanted {
                request,
                plan,
                age: Some(age),
            };
            // The device's end interrupts it, and a lack of memory, which may be over next time.
            drop(self.recompress(&wanted));
        }
    }
}

fn stopping() -> Error {
    Error::Refused {
        what: "recompress",
        reason: "the device is stopping".to_owned(),
        errno: Errno::INTR.into(),
    }
}
