//! How attributes are written, as zram writes them.

use crate::algorithm::{Algorithm, Priority};
use crate::device::Device;
use crate::pool::ClassStats;
use crate::stats::Stats;
use crate::units::PAGE_SIZE;

pub(super) fn algorithms(used: Algorithm) -> String {
    let shown = |known: &Algorithm| match known.name() == used.name() {
        true => format!("[{used}]"),
        false => known.to_string(),
    };
    let shown: Vec<_> = Algorithm::ALL.iter().map(shown).collect();
    shown.join(" ")
}

pub(super) fn recomp_algorithms(device: &Device) -> String {
    let line = |priority: Priority| {
        let used = device.algorithm_of(priority)?;
        Some(format!("#{}: {}\n", priority.number(), algorithms(used)))
    };
    Priority::SECONDARY.into_iter().filter_map(line).collect()
}

pub(super) fn mm_stat(s: &Stats) -> String {
    format!(
        "{:8} {:8} {:8} {:8} {:8} {:8} {:8} {:8} {:8}\n",
        s.orig_data_size,
        s.compr_data_size,
        s.mem_used_total,
        s.mem_limit,
        s.mem_used_max,
        s.same_pages,
        s.pages_compacted,
        s.huge_pages,
        s.huge_pages_since,
    )
}

/// The first column is what the spill occupies, rounded up: packed records share a block.
pub(super) fn bd_stat(s: &Stats) -> String {
    format!(
        "{:8} {:8} {:8}\n",
        s.backing_bytes_used.div_ceil(PAGE_SIZE as u64),
        s.bd_reads,
        s.bd_writes,
    )
}

/// The third column is unpadded in zram, too.
pub(super) fn io_stat(s: &Stats) -> String {
    format!(
        "{:8} {:8} 0 {:8}\n",
        s.failed_reads, s.failed_writes, s.notify_free
    )
}

/// As in zram: a version, and two figures.
pub(super) fn debug_stat(s: &Stats) -> String {
    // Nothing that is freed is ever missed: a discard waits for the lock.
    format!("version: 1\n{:8} {:8}\n", s.write_stalls, 0)
}

/// The columns of zsmalloc's `classes` without those of the fullness groups; classes that hold
/// nothing are left out, as there.
pub(super) fn classes(classes: &[ClassStats]) -> String {
    let mut text = String::from(
        " class  size obj_allocated   obj_used pages_used pages_per_zspage freeable\n",
    );
    let mut sum = [0; 4];
    for (index, class) in classes.iter().enumerate().filter(|(_, c)| c.objects > 0) {
        let figures = [
            class.objects,
            class.objects_used,
            class.frames,
            class.frames_freeable,
        ];
        for (sum, figure) in sum.iter_mut().zip(figures) {
            *sum += figure;
        }
        let [objects, used, frames, freeable] = figures;
        text.push_str(&format!(
            " {index:5} {:5} {objects:13} {used:10} {frames:10} {:16} {freeable:8}\n",
            class.size, class.frames_per_zspage
        ));
    }
    let [objects, used, frames, freeable] = sum;
    text.push_str(&format!(
        "\n {:5} {:5} {objects:13} {used:10} {frames:10} {:16} {freeable:8}\n",
        "Total", "", ""
    ));
    text
}
