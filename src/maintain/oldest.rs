//! Zspages in the order in which they are evicted: the oldest of all shards first.

use super::append::Isolated;
use crate::engine::{Engine, ShardIndex};
use crate::pool::ZspageId;
use crate::shard::Shard;

/// Isolates the oldest zspages, until they have `frames` or the batch that they are emptied into has no room.
/// `empty` empties one, with its shard locked, and says whether anything leaves: if not, all its objects were spared,
/// and it goes back.
pub(super) fn isolate_oldest<B>(
    engine: &Engine,
    frames: u64,
    batch: &mut B,
    has_room: impl Fn(&B) -> bool,
    mut empty: impl FnMut(&mut B, ShardIndex, &mut Shard, ZspageId) -> bool,
) -> Vec<Isolated> {
    let (mut isolated, mut leaving) = (Vec::new(), 0);
    let touched = |index| (index, engine.shards.lock(index).oldest_touch());
    let mut oldest: Vec<_> = engine.shards.layout.shards().map(touched).collect();
    while leaving < frames && has_room(batch) {
        let Some((index, touched)) = oldest_shard(&mut oldest) else {
            break;
        };
        let mut shard = engine.shards.lock(*index);
        if let Some((zspage, frames)) = shard.isolate_oldest() {
            if empty(batch, *index, &mut shard, zspage) {
                leaving += frames;
                isolated.push(Isolated {
                    shard: *index,
                    zspage,
                    frames,
                });
            } else {
                shard.put_back(zspage, true);
            }
        }
        *touched = shard.oldest_touch();
    }
    isolated
}

/// The shard whose oldest zspage, if it has any, is the oldest of all.
fn oldest_shard(
    shards: &mut [(ShardIndex, Option<u32>)],
) -> Option<&mut (ShardIndex, Option<u32>)> {
    // The clock wraps: what lies half its range ahead is behind.
    let reference = shards.iter().find_map(|(_, touched)| *touched)?;
    let age = |touched: u32| touched.wrapping_sub(reference) as i32;
    shards
        .iter_mut()
        .filter(|(_, touched)| touched.is_some())
        .min_by_key(|(_, touched)| touched.map(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_found_across_the_wrap_of_the_clock() {
        let mut shards: Vec<_> = (0..)
            .map(ShardIndex)
            .zip([None, Some(5), Some(u32::MAX - 3)])
            .collect();
        assert_eq!(oldest_shard(&mut shards).map(|s| s.0), Some(ShardIndex(2)));
        shards[2].1 = None;
        assert_eq!(oldest_shard(&mut shards).map(|s| s.0), Some(ShardIndex(1)));
        assert_eq!(oldest_shard(&mut shards[..1]), None);
    }
}
