//! What units hold.

use std::sync::LazyLock;

use super::{UNIT, UNITS};
use crate::codec;
use support::Random;

/// What a unit holds: zeroes, or what a request that has this number wrote.
pub(super) type Version = u32;
pub(super) const ZEROES: Version = 0;

/// What units are made of, but for their beginnings: from noise to what compresses well.
static CONTENTS: LazyLock<[[u8; UNIT]; 7]> = LazyLock::new(|| {
    let mut random = Random(1);
    std::array::from_fn(|kind| {
        let mut content = [0; UNIT];
        for chunk in content.chunks_exact_mut(8) {
            let noise = [8, 6, 4, 3, 2, 2, 1][kind];
            chunk[..noise].copy_from_slice(&random.next().to_le_bytes()[..noise]);
        }
        content
    })
});

/// A dictionary that helps with units of some versions.
pub(super) fn dictionary(random: &mut Random) -> &'static [u8] {
    &CONTENTS[random.below(CONTENTS.len() as u64) as usize]
}

/// What tells a unit that repeats one pattern: such units make a page that is same-filled.
const IS_PATTERN: u32 = 1 << 31;
const _: () = assert!(UNITS / 2 < 1 << 15);

/// Makes `out` that version of a unit.
pub(super) fn fill(unit: u64, version: Version, out: &mut [u8]) {
    if version == ZEROES {
        out.fill(0);
        return;
    }
    let Some(content) = CONTENTS.get(version as usize % 8) else {
        assert!(version < 1 << 16);
        let pattern = IS_PATTERN | (unit as u32 / 2) << 16 | version;
        codec::fill(pattern, 0, out);
        return;
    };
    out.copy_from_slice(content);
    out[..8].copy_from_slice(&unit.to_le_bytes());
    out[8..12].copy_from_slice(&version.to_le_bytes());
}

/// The version of a unit that `found` is; panics if it is none.
pub(super) fn version_of(unit: u64, found: &[u8]) -> Version {
    let [.., one, version] = [0, 4, 8].map(|at| {
        let bytes = found[at..at + 4].try_into().expect("4 bytes");
        u32::from_le_bytes(bytes)
    });
    // A unit's number is smaller than a pattern.
    let version = if one & IS_PATTERN == 0 {
        version
    } else {
        version & 0xffff
    };
    let mut expected = [0; UNIT];
    fill(unit, version, &mut expected);
    assert!(
        *found == expected,
        "unit {unit} is not what version {version} of it is"
    );
    version
}
