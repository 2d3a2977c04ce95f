//! Protections that a model takes out, to be seen to fail without them.

/// What keeps threads that meet from harming each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// A write frees what its slot holds when it is changed, not what it held before.
    FreedAsReplaced,
    /// The budget is looked at and taken from in one step.
    BudgetTakenAtOnce,
    /// Eviction and cleaning change only slots that are as they found them.
    SettledIfUnchanged,
    /// Nothing is allocated in a zspage while it is being evicted.
    IsolatedWhileEvicted,
    /// An object is freed where compaction has moved it, not where it was.
    FreedWhereItIs,
    /// A page that was chosen is replaced only if its slot is still marked.
    MarkedUntilSettled,
    /// A record that cannot be read is looked for anew before the page is given up.
    LookedForAgain,
    /// Nothing is written to a page frame of a table that is on its way back to the kernel.
    NothingWrittenToWhatIsOut,
    /// Only a page that is as it was when it was read back comes to memory.
    PromotedIfUnchanged,
    /// What an image or a backing that leaves has of a page comes to memory only if that has not changed
    /// since it was looked at.
    BroughtBackIfUnchanged,
    /// A part is written over a page that was read back only if that is still the page.
    ChangedIfUnchanged,
    /// What was destaged is clean only if it has not changed since it was taken.
    CleanIfUnchanged,
    /// A page is in a batch to be destaged once.
    OnceInABatch,
    /// What was read of the image is the page only if that never left memory meanwhile.
    GenerationsCounted,
    /// What was read of the image is kept only if nobody has kept it, or changed the page, meanwhile.
    KeptOnce,
    /// A save begins on all shards at one time.
    SavedAsOfOneTime,
    /// What is there when a save begins is saved before it changes.
    SavedBeforeChanged,
    /// What was read to be saved is saved only if nobody else has saved it meanwhile.
    SavedOnce,
    /// Each use of a segment has a number of its own.
    SegmentUsesNumbered,
    /// A wake while the thread is at work is not forgotten.
    WakeRemembered,
    /// A writer is sent away only by a round that began after it came.
    WholeRoundAwaited,
    /// Writers are sent away when the device ends.
    WritersSentAway,
}

/// Whether a protection is taken out: never, but in a model.
#[cfg(not(all(test, shuttle)))]
pub(crate) const fn without(_: Protection) -> bool {
    false
}

#[cfg(all(test, shuttle))]
std::thread_local! {
    static TAKEN_OUT: std::cell::Cell<Option<Protection>> = const { std::cell::Cell::new(None) };
}

/// Whether a protection is taken out of what runs on this thread.
#[cfg(all(test, shuttle))]
pub(crate) fn without(protection: Protection) -> bool {
    TAKEN_OUT.get() == Some(protection)
}

/// Takes a protection, or none, out of what runs on this thread.
#[cfg(all(test, shuttle))]
pub(crate) fn take_out(protection: Option<Protection>) {
    TAKEN_OUT.set(protection);
}
