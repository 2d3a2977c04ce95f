//! What requests count outside of shards.

use crossbeam::utils::CachePadded;

use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;

/// Counts, each with what it counts, which can be started again.
macro_rules! counts {
    ($(#[$of:meta])* $name:ident: $($(#[$what:meta])* $count:ident: $cell:ty,)*) => {
        $(#[$of])*
        #[derive(Debug, Default)]
        pub(crate) struct $name {
            $($(#[$what])* pub(crate) $count: $cell,)*
        }

        impl $name {
            /// Starts all counts again.
            pub(crate) fn reset(&self) {
                $(self.$count.store(0, Relaxed);)*
            }
        }
    };
}

counts! {
    /// What requests count outside of shards.
    RequestCounts:
    failed_reads: AtomicU64,
    failed_writes: AtomicU64,
    notify_free: AtomicU64,
    /// Writes that waited for memory.
    write_stalls: AtomicU64,
    /// Pages read back from the backing.
    bd_reads: CachePadded<AtomicU64>,
    /// Pages written to the backing.
    bd_writes: AtomicU64,
    /// Pages that recompression has made smaller.
    recompressed: AtomicU64,
    /// Pages read from the image.
    origin_reads: AtomicU64,
}
