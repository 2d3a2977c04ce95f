//! The background of a device without its thread, for unit tests of a step.

use std::sync::Arc;

use super::{Command, NewBacking, Writeback};
use crate::config::DeviceConfig;
use crate::engine::Engine;
use crate::origin::Origin;
use crate::spill::FaultyBacking;
use crate::sync::channel::{self, Sender};
use crate::units::PAGE_SIZE;

/// The background of a device of so many pages in one shard, which spills to four segments.
pub(super) fn writeback(pages: u32) -> (Arc<Engine>, Writeback, Sender<Command>) {
    let mut config = DeviceConfig::new(u64::from(pages) * PAGE_SIZE as u64);
    config.shards = Some(1);
    let (engine, _) = Engine::new(&config, Origin::Blank, None).expect("addresses");
    let engine = Arc::new(engine);
    let (commands, receiver) = channel::unbounded();
    let mut writeback = Writeback::new(Arc::clone(&engine), None, receiver, 1);
    let new = NewBacking {
        backing: Arc::new(FaultyBacking::new(4)),
        capacity: 4,
        size: None,
    };
    // Nothing has to leave for it.
    let (done, _) = channel::bounded(1);
    writeback.replace(Some(new), done);
    (engine, writeback, commands)
}
