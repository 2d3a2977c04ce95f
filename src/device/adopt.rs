//! A device that is found in memory that outlived its process.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Error, Result, Writer};
use crate::engine::{Adopted, Engine};
use crate::image::ImageReader;
use crate::maintain::{AdoptedStores, NewBacking, Writeback};
use crate::spill::{Backing, KeptStore, KeptStores, Opener, Store, segments_of};
use crate::sync::atomic::Ordering::Relaxed;

/// Has the background of the device go on with what was found of its spill.
///
/// # Errors
/// [`Error::Io`], [`Error::Unusable`]: what it spilled to, or was being restored from, cannot be used.
pub(super) fn adopt(
    mut found: Adopted,
    writeback: &mut Writeback,
    engine: &Engine,
    writer: &Writer,
    opener: &Opener,
) -> Result<()> {
    let KeptStores {
        backings,
        current,
        image,
    } = std::mem::take(&mut found.stores);
    let size = Some(engine.spilled.backing_size.load(Relaxed)).filter(|&size| size != 0);
    let open = |kept: Option<KeptStore>| {
        let Some(kept) = kept else {
            return Ok(None);
        };
        let backing: Arc<dyn Backing> = opener.adopt(kept)?;
        // Unless all is well nothing is to become of it.
        engine.spilled.stores.hold(Arc::clone(&backing));
        Ok(Some(NewBacking {
            capacity: segments_of(&*backing, size)?,
            backing,
            size,
        }))
    };
    let is_void = found.is_void;
    let stores = AdoptedStores {
        backings: backings.into_iter().map(open).collect::<Result<_>>()?,
        current,
        image: match image.filter(|_| !is_void) {
            Some(kept) => Some(open_image(kept)?),
            None => None,
        },
    };
    writeback
        .adopt(stores, found)
        .map_err(|reason| Error::Unusable {
            path: PathBuf::from("the backing"),
            reason,
        })?;
    engine.spilled.stores.let_go();
    if is_void {
        writer.clear(0..engine.shards.layout.pages());
        engine.set_importing(false)?;
    }
    Ok(())
}

fn open_image(KeptStore { file, note }: KeptStore) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(
        ImageReader::of(file.into(), &note.path())?.store()?,
    ))
}
