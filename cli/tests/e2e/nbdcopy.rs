//! 512 MiB of real pages over NBD into a device that may hold 64 MiB, back again, and all gone after
//! a discard.

use std::path::Path;
use std::process::Command;

use crate::rig::{MIB, MemoryWatch, RealFiles, Scratch, Server, run, stat, tool};
use support::{HANG, within};

const BYTES: u64 = 512 * MIB;
const LIMIT: u64 = 64 * MIB;

#[test]
fn more_than_the_limit_comes_back_and_leaves_nothing() {
    let scratch = Scratch::new();
    let image = scratch.path().join("image");
    make_image(&scratch, &image);
    let (spill, socket) = (scratch.arg("spill"), scratch.arg("nbd"));
    let server = Server::start(
        &scratch,
        "copy",
        &[
            "--size",
            "512M",
            "--mem-limit",
            "64M",
            "--backing",
            &spill,
            "--nbd",
            &format!("unix:{socket}"),
        ],
    );
    let uri = format!("nbd+unix:///copy?socket={socket}");

    let watch = MemoryWatch::start(&scratch, server.name());
    run(tool("nbdcopy").arg("--flush").arg(&image).arg(&uri));
    let filled = stat(&scratch, server.name());
    let back = scratch.path().join("back");
    run(tool("nbdcopy").arg(&uri).arg(&back));
    let samples = watch.finish();

    run(Command::new("cmp").arg(&image).arg(&back));
    assert!(samples.len() >= 20, "only {} samples", samples.len());
    let most = samples.into_iter().max().unwrap_or(0);
    assert!(most <= LIMIT, "mem_used_total reached {most}");
    assert_eq!(filled.get("mem_limit"), LIMIT);
    assert!(filled.get("mem_used_max") <= LIMIT);
    assert!(filled.get("written_back_pages") > 0, "nothing was spilled");
    assert_eq!(
        filled.get("orig_data_size"),
        4096 * (filled.get("resident_pages")
            + filled.get("same_pages")
            + filled.get("written_back_pages"))
    );

    discard(&uri);
    let empty = stat(&scratch, server.name());
    for key in [
        "mem_used_total",
        "orig_data_size",
        "compr_data_size",
        "resident_pages",
        "same_pages",
        "written_back_pages",
    ] {
        assert_eq!(empty.get(key), 0, "{key} after everything was discarded");
    }
    let mut rss = 0;
    let fell = within(HANG, || {
        rss = stat(&scratch, server.name()).get("rss_bytes");
        rss < 96 * MIB
    });
    assert!(fell, "rss_bytes is still {rss} after a discard");
}

/// Exactly [`BYTES`] of an archive of real files.
fn make_image(scratch: &Scratch, image: &Path) {
    let files = RealFiles::choose(scratch, BYTES);
    files.archive(image);
    let file = std::fs::File::options().write(true).open(image);
    file.and_then(|file| file.set_len(BYTES))
        .expect("cutting the image to size");
}

/// Trims the whole device, in requests of at most 32 MiB.
fn discard(uri: &str) {
    let script = format!(
        "h.connect_uri('{uri}')\n\
         size, step = h.get_size(), 32 << 20\n\
         for at in range(0, size, step):\n    h.trim(min(step, size - at), at)\n\
         h.shutdown()\n"
    );
    run(tool("nbdsh").args(["-c", &script]));
}
