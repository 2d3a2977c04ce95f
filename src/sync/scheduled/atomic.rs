//! Atomics.

pub(crate) use std::sync::atomic::Ordering;
use std::sync::atomic::Ordering::SeqCst;

use zerocopy::FromZeros;

use super::switch;

macro_rules! atomic {
    ($name:ident, $value:ty, $($also:ident)?) => {
        #[derive(Debug, Default, FromZeros)]
        #[repr(transparent)]
        pub(crate) struct $name(std::sync::atomic::$name);

        #[allow(dead_code, reason = "not every operation of every type is used")]
        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                Self(std::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, _: Ordering) -> $value {
                switch();
                self.0.load(SeqCst)
            }

            pub(crate) fn store(&self, value: $value, _: Ordering) {
                switch();
                self.0.store(value, SeqCst);
            }

            pub(crate) fn swap(&self, value: $value, _: Ordering) -> $value {
                switch();
                self.0.swap(value, SeqCst)
            }
            $(atomic!($also, $value);)?
        }
    };
    (counts, $value:ty) => {
        pub(crate) fn fetch_add(&self, by: $value, _: Ordering) -> $value {
            switch();
            self.0.fetch_add(by, SeqCst)
        }

        pub(crate) fn fetch_sub(&self, by: $value, _: Ordering) -> $value {
            switch();
            self.0.fetch_sub(by, SeqCst)
        }

        pub(crate) fn fetch_and(&self, mask: $value, _: Ordering) -> $value {
            switch();
            self.0.fetch_and(mask, SeqCst)
        }

        pub(crate) fn fetch_max(&self, value: $value, _: Ordering) -> $value {
            switch();
            self.0.fetch_max(value, SeqCst)
        }

        pub(crate) fn fetch_update(
            &self,
            _: Ordering,
            _: Ordering,
            update: impl FnMut($value) -> Option<$value>,
        ) -> Result<$value, $value> {
            switch();
            self.0.fetch_update(SeqCst, SeqCst, update)
        }
    };
}

atomic!(AtomicBool, bool,);
atomic!(AtomicU8, u8, counts);
atomic!(AtomicU32, u32, counts);
atomic!(AtomicU64, u64, counts);
atomic!(AtomicUsize, usize, counts);
