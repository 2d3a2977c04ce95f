//! A pool beside a model of what it should hold, for those who try pools: tests and fuzzers.

use std::collections::HashMap;
use std::sync::Arc;

use super::{ObjectAddress, Owner, Pool, PoolKind, Stored, ZspageId};
use crate::memory::{FrameBudget, MemorySource};

const ADDRESS_FRAMES: usize = 1 << 16;

/// One thing to do with a pool. What is `pick`ed is one of the objects there are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// An object of so many bytes.
    Store(usize),
    /// A picked object.
    Free(usize),
    /// The zspage of a picked object, if it is known.
    IsolateOf(usize),
    /// All that is isolated.
    PutBack,
    Compact,
    /// All but so many freed frames.
    ReleaseIdle(usize),
}

pub(crate) struct Harness {
    pub(super) pool: Box<dyn Pool>,
    pub(super) budget: Arc<FrameBudget>,
    pub(super) objects: HashMap<Owner, (ObjectAddress, Vec<u8>)>,
    pub(super) isolated: Vec<ZspageId>,
    next_owner: u32,
    /// Of the objects stored since the last compaction.
    zspages: HashMap<Owner, ZspageId>,
}

impl Harness {
    pub(crate) fn new(kind: PoolKind, limit: u64) -> Self {
        let budget = Arc::new(FrameBudget::new(limit));
        let pool = super::new(
            kind,
            ADDRESS_FRAMES,
            Arc::clone(&budget),
            &MemorySource::Process,
        );
        Self {
            pool: pool.expect("addresses"),
            budget,
            objects: HashMap::new(),
            isolated: Vec::new(),
            next_owner: 0,
            zspages: HashMap::new(),
        }
    }

    /// Stores an object of `len` bytes, which depend on its owner.
    pub(super) fn store(&mut self, len: usize) -> Option<Stored> {
        let owner = Owner(self.next_owner);
        let data: Vec<u8> = (0..len)
            .map(|i| (i as u32 * 31 + owner.0 * 7) as u8)
            .collect();
        let stored = self.pool.store(owner, &data).ok()?;
        assert!(
            !self.isolated.contains(&stored.zspage),
            "stored in an isolated zspage"
        );
        self.objects.insert(owner, (stored.object, data));
        self.next_owner += 1;
        Some(stored)
    }

    fn any_owner(&self, pick: usize) -> Option<Owner> {
        let mut owners: Vec<_> = self.objects.keys().copied().collect();
        owners.sort_unstable();
        (!owners.is_empty()).then(|| owners[pick % owners.len()])
    }

    pub(super) fn free(&mut self, owner: Owner) {
        let (object, _) = self.objects.remove(&owner).expect("a known owner");
        if let Some(freed) = self.pool.free(object) {
            assert!(
                !self.isolated.contains(&freed),
                "an isolated zspage was freed"
            );
        }
    }

    pub(super) fn isolate(&mut self, zspage: ZspageId) {
        if !self.isolated.contains(&zspage) {
            self.pool.isolate(zspage);
            self.isolated.push(zspage);
        }
    }

    pub(super) fn compact(&mut self) -> u64 {
        let mut frames = 0;
        let mut before = self.pool.frames_in_use();
        while let Some(done) = self.pool.compact(&mut |owner, from, to| {
            let (at, _) = self.objects.get_mut(&owner).expect("a known owner");
            assert_eq!(*at, from);
            *at = to;
        }) {
            assert!(
                !self.isolated.contains(&done.zspage),
                "an isolated zspage was compacted"
            );
            assert!(!done.into.is_empty() && !done.into.contains(&done.zspage));
            let after = self.pool.frames_in_use();
            assert_eq!(done.frames, before.saturating_sub(after));
            frames += done.frames;
            before = after;
        }
        frames
    }

    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::Store(len) => {
                if let Some(stored) = self.store(len) {
                    self.zspages
                        .insert(Owner(self.next_owner - 1), stored.zspage);
                }
            }
            Step::Free(pick) => {
                if let Some(owner) = self.any_owner(pick) {
                    self.free(owner);
                    self.zspages.remove(&owner);
                }
            }
            Step::IsolateOf(pick) => {
                let owner = self.any_owner(pick);
                if let Some(&zspage) = owner.and_then(|owner| self.zspages.get(&owner)) {
                    self.isolate(zspage);
                }
            }
            Step::PutBack => self.put_back(),
            Step::Compact => {
                self.compact();
                // Objects have changed zspages: whose are where is not known any more.
                self.zspages.clear();
            }
            Step::ReleaseIdle(keep) => {
                let mut idle = self.pool.take_idle(keep);
                idle.release().expect("madvise");
                self.pool.accept_idle(idle);
            }
        }
    }

    fn put_back(&mut self) {
        for zspage in std::mem::take(&mut self.isolated) {
            self.pool.put_back(zspage);
        }
    }

    pub(crate) fn check(&self) {
        self.pool.check();
        assert_eq!(self.pool.frames_in_use(), self.budget.used());
        for (owner, (object, data)) in &self.objects {
            assert_eq!(self.pool.bytes(*object, data.len()), data, "{owner:?}");
        }
    }

    /// Puts back what is isolated and frees everything: nothing may be left.
    pub(crate) fn drain(mut self) {
        self.put_back();
        while let Some(owner) = self.any_owner(0) {
            self.free(owner);
        }
        self.check();
        assert_eq!(self.pool.frames_in_use(), 0);
    }
}
