//! Models: races between the engine's own threads and its callers', under a scheduler that a seed
//! tells which thread goes on at each lock, message, atomic and use of the backing.
//!
//! Each model has to hold whatever the seed, and to fail, with some seed, once the protection that
//! it is about is taken out. A seed that fails is printed with the command that replays it;
//! `scripts/models.sh` runs them with as many seeds as one likes.

mod destage;
mod in_place;
mod restored;
mod run;
mod saved;
mod simulation;
mod spilled;
mod waiting;

use shuttle::thread::scope;

use super::*;
use crate::sync::Protection::*;

/// A model, tested twice: whole, and without a protection.
macro_rules! model {
    ($(#[$about:meta])* $name:ident, without $protection:expr, $run:expr) => {
        $(#[$about])*
        mod $name {
            use super::*;

            #[test]
            fn holds() {
                run::holds(concat!(module_path!(), "::holds"), $run);
            }

            #[test]
            fn fails_without_its_protection() {
                run::fails_without($protection, $run);
            }
        }
    };
}
use model;

/// A device of one shard and of the allocator whose turn it is, with room in memory for all of it.
fn roomy(backing: &Arc<FaultyBacking>) -> Device {
    device_with(run::pool(), 64, 64, 1, backing)
}

fn backing() -> Arc<FaultyBacking> {
    Arc::new(FaultyBacking::new(4))
}

fn read(device: &Device, page: u64) -> Page {
    let mut found = [0xee; PAGE_SIZE];
    device.read(page * PAGE, &mut found).expect("readable");
    found
}

/// The tags, of those given, whose page it is.
fn one_of(page: &Page, tags: &[u64]) -> u64 {
    let is = |tag: &&u64| {
        *page
            == if **tag == 0 {
                [0; PAGE_SIZE]
            } else {
                tagged(**tag)
            }
    };
    *tags
        .iter()
        .find(is)
        .unwrap_or_else(|| panic!("none of {tags:?}"))
}

fn evict_all(device: &Device) {
    device.evict(u64::MAX / 2).expect("evicted");
}
