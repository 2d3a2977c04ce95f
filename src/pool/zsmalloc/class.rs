//! Size classes: how zspages are cut.

use std::sync::LazyLock;

use crate::memory::ChainLen;
use crate::pool::OBJECT_ALIGN;
use crate::units::PAGE_SIZE;

/// Bytes before each object's data, for its owner.
pub(super) const HEADER_LEN: usize = 4;

/// Smallest class (`ZS_MIN_ALLOC_SIZE`).
const MIN_SIZE: usize = 32;

/// A way to cut a zspage into equal objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// Bytes of an object with its header, a multiple of [`OBJECT_ALIGN`].
    pub(super) size: usize,
    /// Frames in a zspage.
    pub(super) chain: ChainLen,
    /// Objects in a zspage.
    pub(super) objects: u16,
}

/// An index into [`Geometry::classes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClassIndex(pub(super) u8);

/// All classes, from small to large, the last one for huge objects: a whole frame each.
///
/// Classes are [`OBJECT_ALIGN`] bytes apart. One that would cut a zspage into as many objects as
/// the next larger one does is merged with it (`can_merge` in `mm/zsmalloc.c`), and those whose
/// objects would take a frame each anyway are left out: such data is stored as a raw page.
pub(super) struct Geometry {
    classes: Vec<Class>,
    /// The class for an object of `i * OBJECT_ALIGN` bytes with its header.
    by_size: Vec<ClassIndex>,
}

pub(super) static GEOMETRY: LazyLock<Geometry> = LazyLock::new(Geometry::new);

impl Geometry {
    fn new() -> Self {
        let mut sizes: Vec<Class> = (MIN_SIZE..PAGE_SIZE)
            .step_by(OBJECT_ALIGN)
            .map(Class::with_size)
            .collect();
        sizes.retain(|class| usize::from(class.objects) > class.chain.frames());

        let mut classes: Vec<Class> = Vec::new();
        for class in sizes {
            match classes.last_mut() {
                Some(last) if (last.chain, last.objects) == (class.chain, class.objects) => {
                    *last = class;
                }
                _ => classes.push(class),
            }
        }
        let max_size = classes.last().map_or(0, |class| class.size);
        let by_size = (0..=max_size / OBJECT_ALIGN)
            .map(|i| {
                let size = i * OBJECT_ALIGN;
                ClassIndex(classes.partition_point(|class| class.size < size) as u8)
            })
            .collect();
        classes.push(Class {
            size: PAGE_SIZE,
            chain: ChainLen::new(1),
            objects: 1,
        });
        assert!(classes.len() <= usize::from(u8::MAX));
        Self { classes, by_size }
    }

    pub(super) fn classes(&self) -> &[Class] {
        &self.classes
    }

    pub(super) fn class(&self, index: ClassIndex) -> Class {
        self.classes[usize::from(index.0)]
    }

    /// The longest data stored with a header.
    pub(super) fn max_len(&self) -> usize {
        (self.by_size.len() - 1) * OBJECT_ALIGN - HEADER_LEN
    }

    /// The class for `len` bytes of data.
    pub(super) fn class_for(&self, len: usize) -> ClassIndex {
        if len == PAGE_SIZE {
            return self.huge();
        }
        self.by_size[(len + HEADER_LEN).div_ceil(OBJECT_ALIGN)]
    }

    /// The class of raw pages, whose owner is kept in the zspage because the data fills it.
    pub(super) fn huge(&self) -> ClassIndex {
        ClassIndex(self.classes.len() as u8 - 1)
    }
}

/// No object starts there.
pub(super) const NOWHERE: u16 = u16::MAX;

/// Which object of a zspage starts where in its page frame.
pub(super) struct Places([u16; PAGE_SIZE / OBJECT_ALIGN]);

impl Places {
    /// Which object of its zspage starts at a byte of an arena, or [`NOWHERE`].
    pub(super) fn nth(&self, byte: usize) -> u16 {
        self.0[byte % PAGE_SIZE / OBJECT_ALIGN]
    }
}

impl Class {
    /// Where its objects start. No two start equally far into a page frame: if they did, the bytes between them would
    /// fill whole frames with objects, and the class would chain just those.
    pub(super) fn places(&self) -> Places {
        let mut places = [NOWHERE; PAGE_SIZE / OBJECT_ALIGN];
        for nth in 0..self.objects {
            let at = usize::from(nth) * self.size % PAGE_SIZE;
            debug_assert_eq!(places[at / OBJECT_ALIGN], NOWHERE);
            places[at / OBJECT_ALIGN] = nth;
        }
        Places(places)
    }

    /// Page frames that the first `objects` objects of a zspage lie in.
    pub(super) fn frames_of(self, objects: u16) -> usize {
        (usize::from(objects) * self.size).div_ceil(PAGE_SIZE)
    }

    /// The fewest page frames that so many objects can lie in.
    pub(super) fn fewest_frames(self, objects: u64) -> u64 {
        let (whole, rest) = (
            objects / u64::from(self.objects),
            objects % u64::from(self.objects),
        );
        whole * self.chain.frames() as u64 + self.frames_of(rest as u16) as u64
    }

    /// Cuts for objects of `size`, chaining as many frames as waste the least share of them.
    fn with_size(size: usize) -> Self {
        let waste = |frames: usize| (frames * PAGE_SIZE) % size;
        let chain = (1..=ChainLen::MAX)
            .min_by(|&a, &b| (waste(a) * b).cmp(&(waste(b) * a)))
            .expect("a chain has at least one length");
        let objects = (chain * PAGE_SIZE / size) as u16;
        Self {
            size,
            chain: ChainLen::new(chain),
            objects,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spill::{MIN_APPEND, RecordFormat};

    #[test]
    fn every_length_has_the_smallest_class_that_fits() {
        let geometry = &*GEOMETRY;
        for len in 1..=geometry.max_len() {
            let index = geometry.class_for(len);
            let class = geometry.class(index);
            assert!(class.size >= len + HEADER_LEN, "{len} in {class:?}");
            if let Some(smaller) = index.0.checked_sub(1) {
                let smaller = geometry.class(ClassIndex(smaller));
                assert!(smaller.size < len + HEADER_LEN, "{len} fits {smaller:?}");
            }
        }
        assert_eq!(
            geometry.class(geometry.class_for(PAGE_SIZE)).size,
            PAGE_SIZE
        );
    }

    #[test]
    fn a_frame_is_counted_from_its_first_object_on() {
        let class = Class::with_size(3072);
        assert_eq!((class.chain.frames(), class.objects), (3, 4));
        assert_eq!([0, 1, 2, 3, 4].map(|n| class.frames_of(n)), [0, 1, 2, 3, 3]);
        assert_eq!(
            [0, 1, 4, 5, 8].map(|n| class.fewest_frames(n)),
            [0, 1, 3, 4, 6]
        );
        for class in GEOMETRY.classes() {
            // So a zspage is never short of more than one frame for its next object.
            for n in 0..class.objects {
                assert!(
                    class.frames_of(n + 1) <= class.frames_of(n) + 1,
                    "{class:?}"
                );
            }
            assert_eq!(
                class.frames_of(class.objects),
                class.chain.frames(),
                "{class:?}"
            );
        }
    }

    #[test]
    fn where_an_object_starts_says_which_it_is() {
        for class in GEOMETRY.classes() {
            let places = class.places();
            for nth in 0..class.objects {
                assert_eq!(places.nth(usize::from(nth) * class.size), nth, "{class:?}");
            }
        }
    }

    #[test]
    fn cutting_wastes_little() {
        for class in GEOMETRY.classes() {
            let used = usize::from(class.objects) * class.size;
            assert!(used <= class.chain.bytes());
            assert!(
                class.chain.bytes() - used < class.size,
                "{class:?} has room for one more"
            );
            assert!(
                used * 100 >= class.chain.bytes() * 88,
                "{class:?} wastes over 12%"
            );
        }
    }

    /// Eviction puts all the objects of a zspage in one append.
    #[test]
    fn the_records_of_a_zspage_fit_an_append() {
        // The longer ones.
        let format = RecordFormat::sealed(None).expect("a page can be locked");
        for class in GEOMETRY.classes() {
            let longest = format.record_len(class.size.min(PAGE_SIZE));
            let bytes = usize::from(class.objects) * longest;
            assert!(bytes <= MIN_APPEND as usize, "{class:?}: {bytes}");
        }
    }

    #[test]
    fn data_that_does_not_save_a_frame_in_eight_is_huge() {
        // 9 objects in 8 frames is the least saving that a chain of 8 can make.
        assert_eq!(GEOMETRY.max_len(), 8 * PAGE_SIZE / 9 / 16 * 16 - HEADER_LEN);
    }
}
