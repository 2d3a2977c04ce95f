//! Stores to memory that may outlive the process.
//!
//! A process can die between any two instructions, and whoever adopts its memory finds every store up to there. So
//! what is found is whole at each of them if the stores that say where data is are each one store of a word, and
//! neither the compiler nor the processor moves another across it: [`Publish`]. What a word leads to is stored before
//! it, and changed only after no word leads there.
//!
//! Each such store comes after a crash point. In tests something can be done there, by the thread that stores: what
//! it finds in the memory is what an adopter would find after a death there.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// A word in memory that may outlive the process.
pub(crate) trait Publish {
    type Value;

    /// Stores the word after all stores before this, and before all that follow.
    fn publish(&self, value: Self::Value);
}

/// A word of a table that is looked at under a lock only: models need not schedule it.
pub(crate) type Word = AtomicU64;

macro_rules! publish {
    ($($word:ty: $value:ty),*) => {$(
        impl Publish for $word {
            type Value = $value;

            #[inline]
            fn publish(&self, value: $value) {
                crash_point();
                self.store(value, Ordering::Release);
                fence(Ordering::Release);
            }
        }
    )*};
}

publish!(AtomicU8: u8, AtomicU32: u32, AtomicU64: u64);

#[cfg(not(test))]
#[inline(always)]
pub(crate) fn crash_point() {}

#[cfg(test)]
pub(crate) use in_tests::{at_crash_points, crash_point};

#[cfg(test)]
mod in_tests {
    use std::cell::RefCell;

    type Act = Box<dyn FnMut()>;

    thread_local! {
        static ACT: RefCell<Option<Act>> = const { RefCell::new(None) };
    }

    pub(crate) fn crash_point() {
        // Not again within what is done there.
        let act = ACT.with(|act| act.try_borrow_mut().ok()?.take());
        if let Some(mut act) = act {
            act();
            ACT.with(|place| *place.borrow_mut() = Some(act));
        }
    }

    /// Calls `act` at each such point that this thread comes to while it runs `f`.
    pub(crate) fn at_crash_points<T>(act: impl FnMut() + 'static, f: impl FnOnce() -> T) -> T {
        ACT.with(|place| *place.borrow_mut() = Some(Box::new(act)));
        let done = f();
        ACT.with(|place| *place.borrow_mut() = None);
        done
    }
}
