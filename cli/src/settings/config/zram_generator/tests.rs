//! Facts from zram-generator's own tests, its example and files that distributions publish.

use super::*;

const RAM: u64 = 8192;

/// What a device of a file becomes, as words.
fn words(entry: &Entry) -> Vec<String> {
    let word = |key: &Key| match &key.value {
        Value::Words(words) => format!("{}={}", key.name, words.join(",")),
        Value::Flag(true) => key.name.clone(),
        Value::Flag(false) => format!("no {}", key.name),
    };
    entry.keys.iter().map(word).collect()
}

/// A file on a machine with so many MiB, its devices with their keys, and how many warnings there are.
type Case<'a> = (&'a str, u64, &'a [(&'a str, &'a [&'a str])], usize);

const CASES: &[Case] = &[
    // All defaults.
    (
        "[zram0]",
        782,
        &[("zram0", &["size=409993216", "swap-priority=100"])],
        0,
    ),
    (
        "[zram0]",
        16384,
        &[("zram0", &["size=4294967296", "swap-priority=100"])],
        0,
    ),
    ("", RAM, &[], 0),
    // Arch, CachyOS.
    (
        "[zram0]\nzram-size = ram\ncompression-algorithm = zstd\nswap-priority = 100\nfs-type = swap\n",
        RAM,
        &[(
            "zram0",
            &["size=8589934592", "algorithm=zstd", "swap-priority=100"],
        )],
        0,
    ),
    (
        "[zram0]\ncompression-algorithm = zstd lz4 (type=huge)\nzram-size = ram\nswap-priority = 100\nfs-type = swap",
        RAM,
        &[(
            "zram0",
            &[
                "size=8589934592",
                "algorithm=zstd",
                "recompress=lz4",
                "swap-priority=100",
            ],
        )],
        1,
    ),
    // Of a machine that has too much memory; one more megabyte is allowed for.
    ("[zram0]\nhost-memory-limit=7824", 7825, &[], 0),
    (
        "[zram0]\nhost-memory-limit=7824\nzram-size=1",
        7824,
        &[("zram0", &["size=1048576", "swap-priority=100"])],
        0,
    ),
    // Sections that are there again, and keys.
    (
        "[zram0]\nzram-size=1\nzram-size=2\n[zram1]\nhost-memory-limit = 2\n[zram0]\nswap-priority=200\noptions=\n\
         [zram1]\nmemory-limit = none\nzram-size=ram*0.5",
        RAM,
        &[
            ("zram0", &["size=2097152", "swap-priority=200"]),
            ("zram1", &["size=4294967296", "swap-priority=100"]),
        ],
        0,
    ),
    // No device.
    (
        "[zram0]\nzram-size = 0\n[zram1]\nzram-size = 1/4194304",
        RAM,
        &[],
        0,
    ),
    // The older keys, which go before zram-size.
    (
        "[zram0]\nzram-fraction = 0.10\nmax-zram-size = 2048\nmemory-limit = 100000\nzram-size = 1\n\
         [zram1]\nzram-fraction = 0.5\nmax-zram-size = 1024\n[zram2]\nmax-zram-size = none\n\
         [zram3]\nzram-fraction = 0.1\nmemory-limit = 1",
        RAM,
        &[
            ("zram0", &["size=858783744", "swap-priority=100"]),
            ("zram1", &["size=1073741824", "swap-priority=100"]),
            ("zram2", &["size=4294967296", "swap-priority=100"]),
        ],
        0,
    ),
    // File systems.
    (
        "[zram11]\nmount-point = /var/compressed\nfs-type = ext4\nswap-priority = 7\noptions = discard,casefold",
        782,
        &[(
            "zram11",
            &[
                "size=409993216",
                "mountpoint=/var/compressed",
                "fs=ext4",
                "options=discard,casefold",
            ],
        )],
        0,
    ),
    (
        "[zram1]\nzram-size = ram / 10\nfs-type = ext2\nmount-point = /run/compressed-mount-point",
        RAM,
        &[(
            "zram1",
            &["size=858996736", "mountpoint=/run/compressed-mount-point"],
        )],
        1,
    ),
    (
        "[zram14]\nzram-size = 64\nmount-point = /.żupan-ci3pły\nfs-type = xfs",
        RAM,
        &[(
            "zram14",
            &["size=67108864", "mountpoint=/.żupan-ci3pły", "fs=xfs"],
        )],
        0,
    ),
    // Quoted, with a writeback-device.
    (
        "[zram0]\nzram-size = \"min(0.75 * ram, 6000)\"\nzram-resident-limit = 'ram / 4'\n\
         compression-algorithm = lz4 zstd(level=3) (type=idle)\nwriteback-device=/dev/zvol/tarta-zoot/swap-writeback",
        2050,
        &[(
            "zram0",
            &[
                "size=1612185600",
                "backing=/dev/zvol/tarta-zoot/swap-writeback",
                "mem-limit=537395200",
                "algorithm=lz4",
                "recompress=zstd:3",
                "swap-priority=100",
            ],
        )],
        0,
    ),
    // As in zram, a limit without one is let be, and one that is never met needs no warning.
    (
        "[zram0]\nzram-size = 64\nzram-resident-limit = 16\n[zram1]\nzram-size = 64\nzram-resident-limit = 9999\n\
         [zram2]\nzram-size = 64\nzram-resident-limit = 0",
        RAM,
        &[
            (
                "zram0",
                &[
                    "size=67108864",
                    "mem-limit=16777216",
                    "allow-enospc",
                    "swap-priority=100",
                ],
            ),
            (
                "zram1",
                &[
                    "size=67108864",
                    "mem-limit=10484711424",
                    "allow-enospc",
                    "swap-priority=100",
                ],
            ),
            ("zram2", &["size=67108864", "swap-priority=100"]),
        ],
        1,
    ),
    // What zram-generator ignores.
    (
        "key = 1\n[disk]\nzram-size = (\n[zramx]\n[zram0]\nzram-size = 1\nzram-sise = 2",
        RAM,
        &[("zram0", &["size=1048576", "swap-priority=100"])],
        4,
    ),
    // Options of swap space.
    (
        "[zram0]\nzram-size = 1\noptions = defaults,discard=pages",
        RAM,
        &[("zram0", &["size=1048576", "swap-priority=100"])],
        0,
    ),
];

#[test]
fn files_are_read_as_zram_generator_reads_them() {
    for (text, ram, devices, warnings) in CASES {
        let parsed = parse(text, *ram).unwrap_or_else(|wrong| panic!("{text}: {wrong:?}"));
        let read: Vec<_> = parsed
            .entries
            .iter()
            .map(|entry| (entry.name.to_string(), words(entry)))
            .collect();
        let wanted: Vec<_> = devices
            .iter()
            .map(|(name, words)| {
                (
                    (*name).to_owned(),
                    words.iter().map(ToString::to_string).collect(),
                )
            })
            .collect();
        assert_eq!(read, wanted, "{text}");
        assert_eq!(
            parsed.warnings.len(),
            *warnings,
            "{text}: {:?}",
            parsed.warnings
        );
    }
}

#[test]
fn what_uzram_cannot_do_is_refused_with_a_remedy() {
    for (line, words) in [
        ("compression-algorithm = lzo-rle", "use lz4"),
        ("compression-algorithm = zstd(dict=/d)", "level=N"),
        ("fs-type = ext4", "add mount-point"),
        ("options = discard,pri=5", "swap-priority"),
        ("set!top = /bin/x", "uzram runs no programs"),
        ("zram-size = cores * 2", "expression"),
        ("zram-size = print(1)", "print()"),
        ("zram-resident-limit = -1", "use 0 to"),
        ("zram-fraction = -0.5", "zram-fraction"),
        ("zram-fraction = 1e9", "16T"),
        ("writeback-device = none", "leave the key out"),
        ("mount-point = mnt", "from the root"),
        ("mount-point = /m/../n", "from the root"),
        ("max-zram-size = 1G", "MiB, or none"),
        ("host-memory-limit = lots", "MiB, or none"),
        ("nonsense", "KEY = VALUE"),
    ] {
        let wrong = parse(&format!("[zram0]\n\n{line}\n"), RAM).unwrap_err();
        assert!(wrong.reason.contains(words), "{words} in {}", wrong.reason);
        let of_section = line.contains("1e9");
        assert_eq!(wrong.line, if of_section { 1 } else { 3 }, "{line}");
    }
    let mounted = "[zram0]\nmount-point = /m\nfs-type = vfat\n";
    let wrong = parse(mounted, RAM).unwrap_err();
    assert!(
        wrong.line == 3 && wrong.reason.contains("ext4, btrfs, xfs"),
        "{}",
        wrong.reason
    );
    let variable = "set!ratio = echo 0.75\n[zram0]\nzram-size = ram * ratio\n";
    assert_eq!(parse(variable, RAM).unwrap_err().line, 1);
}
