//! Clients without TLS: libnbd's tools, QEMU's and fio.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use support::noise;
use uzram::BlockDevice;

use crate::rig::*;

#[test]
fn nbdinfo_sees_all_that_is_offered() {
    let fixture = Fixture::new();
    let info = json(&libnbd("nbdinfo", &["--json", &fixture.uri()]));
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "disk");
    assert_eq!(export["export-size"], SIZE);
    for offered in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[offered], true, "{offered}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["is_rotational"], false);
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 * MIB);
    let contexts = export["contexts"].as_array().expect("a list");
    assert_eq!(contexts, &["base:allocation", "uzram:state"]);
}

#[test]
fn nbdinfo_lists_and_maps() {
    let fixture = Fixture::new();
    fixture.write_a_little();
    let list = json(&libnbd("nbdinfo", &["--list", "--json", &fixture.uri()]));
    assert_eq!(list["exports"].as_array().expect("a list").len(), 1);
    assert_eq!(list["exports"][0]["export-name"], "disk");

    let extents = |context: &str| {
        let argument = format!("--map={context}");
        let map = json(&libnbd("nbdinfo", &[&argument, "--json", &fixture.uri()]));
        let extents = map.as_array().expect("a list").clone();
        extents
            .iter()
            .map(|extent| {
                let number = |key: &str| extent[key].as_u64().expect("a number");
                (number("offset"), number("length"), number("type"))
            })
            .collect::<Vec<_>>()
    };
    let end = MIB + 8192;
    let expected = |hole, data| {
        vec![
            (0, 4096, data),
            (4096, MIB - 4096, hole),
            (MIB, 8192, data),
            (end, SIZE - end, hole),
        ]
    };
    assert_eq!(extents("base:allocation"), expected(3, 0));
    assert_eq!(extents("uzram:state"), expected(0, 2));
}

#[test]
fn nbdcopy_copies_in_and_out_over_several_connections() {
    let fixture = Fixture::new();
    let (image, copy) = (fixture.path("image"), fixture.path("copy"));
    sparse_image(&image);
    let file = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    for options in [
        &["--connections=4", "--threads=4", "--requests=64"][..],
        &["--connections=1", "--request-size=1048576"],
        &["--synchronous"],
        &["--destination-is-zero", "--no-extents"],
    ] {
        let (is_zero, rest): (Vec<&str>, Vec<&str>) = options
            .iter()
            .partition(|option| option.starts_with("--destination"));
        fixture.device.discard(0, SIZE).expect("discards");
        let (from, to) = (file(&image), fixture.uri());
        let arguments = [&rest[..], &is_zero, &["--flush", &from, &to]].concat();
        libnbd("nbdcopy", &arguments);

        let (from, to) = (fixture.uri(), file(&copy));
        File::create(&copy)
            .and_then(|f| f.set_len(SIZE))
            .expect("a file");
        libnbd("nbdcopy", &[&rest[..], &[&from, &to]].concat());
        assert_same_files(&image, &copy);
    }
}

#[test]
fn libnbd_gets_the_right_error_for_all_that_it_usually_refuses_to_send() {
    let fixture = Fixture::new();
    let script = r#"
import errno, nbd, sys

def fails(number, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as error:
        assert error.errnum == number, (call.__name__, args, error.errno)
    else:
        raise AssertionError((call.__name__, args))

h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.add_meta_context("uzram:state")
h.connect_uri(sys.argv[1])
size = h.get_size()

fails(errno.EINVAL, h.pread, 512, size)
fails(errno.ENOSPC, h.pwrite, bytearray(512), size - 511)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.cache, 512, size)
fails(errno.EINVAL, h.block_status, 512, size, lambda *args: 0)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pwrite, bytearray(512), 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_DF)
fails(errno.EOVERFLOW, h.cache, (64 << 20) + 1, 0)

data = bytes(range(256)) * 16
h.pwrite(data, 1000, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 1000) == data
assert h.pread(65536, 0, nbd.CMD_FLAG_DF)[1000:5096] == data
chunks = []
h.pread_structured(65536, 0, lambda b, o, s, e: chunks.append((o, len(b), s)))
assert chunks == [(0, 8192, nbd.READ_DATA), (8192, 57344, nbd.READ_HOLE)], chunks
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
h.cache(65536, 0)
h.trim(4096, 0)
assert h.pread(65536, 0) == bytearray(65536)
h.pwrite(bytearray(0), 0)
assert h.pread(0, 0) == b""

seen = {}
def extent(context, offset, entries, error):
    seen[context] = entries
h.pwrite(data, 8192)
h.block_status(65536, 8192, extent, nbd.CMD_FLAG_REQ_ONE)
assert seen == {"base:allocation": [4096, 0], "uzram:state": [4096, 2]}, seen
h.flush()
h.shutdown()
"#;
    let path = fixture.path("script.py");
    std::fs::write(&path, script).expect("a file");
    let arguments = [path.to_str().expect("UTF-8"), &fixture.uri()];
    run("python3-libnbd", "python3", &arguments);
}

/// As large as libnbd sends at all, from a client that does not ask for the server's limits.
#[test]
fn libnbd_is_served_very_large_requests() {
    let fixture = Fixture::new();
    let script = r#"
import nbd, os, sys

for structured in (False, True):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    h.set_request_block_size(False)
    h.connect_uri(sys.argv[1])
    for length in (40 << 20, 64 << 20):
        data = bytearray(os.urandom(1 << 20)) * (length >> 20)
        h.pwrite(data, 4096)
        assert h.pread(length, 4096) == data
    h.shutdown()
"#;
    let path = fixture.path("script.py");
    std::fs::write(&path, script).expect("a file");
    let arguments = [path.to_str().expect("UTF-8"), &fixture.uri()];
    run("python3-libnbd", "python3", &arguments);
}

#[test]
fn nbdsh_options_mode_finds_the_export_and_no_other() {
    let fixture = Fixture::new();
    let script = format!(
        r#"
h.set_opt_mode(True)
h.connect_unix("{}")
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["disk"], names
h.set_export_name("other")
try:
    h.opt_info()
except nbd.Error:
    pass
else:
    raise AssertionError("there is no export of that name")
contexts = []
h.set_export_name("")
h.opt_list_meta_context(contexts.append)
assert contexts == ["base:allocation", "uzram:state"], contexts
h.opt_info()
assert h.get_size() == {SIZE}
h.opt_abort()
"#,
        fixture.path("nbd.sock").display()
    );
    run("python3-libnbd", "nbdsh", &["-c", &script]);
}

#[test]
fn qemu_img_converts_compares_maps_and_checks() {
    let fixture = Fixture::new();
    let image = fixture.path("image");
    sparse_image(&image);
    let image = image.to_str().expect("UTF-8");
    let uri = &fixture.uri();
    qemu(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", image, uri],
    );
    qemu(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", image, uri],
    );
    let back = fixture.path("back");
    let back = back.to_str().expect("UTF-8");
    qemu(
        "qemu-img",
        &[
            "convert", "-W", "-m", "8", "-f", "raw", "-O", "raw", uri, back,
        ],
    );
    assert_same_files(Path::new(image), Path::new(back));

    let map = json(&qemu(
        "qemu-img",
        &["map", "--output=json", "-f", "raw", uri],
    ));
    let runs = map.as_array().expect("a list");
    let data = |run: &&Value| run["data"] == true;
    let stored: u64 = runs
        .iter()
        .filter(data)
        .map(|run| run["length"].as_u64().expect("a number"))
        .sum();
    assert!((20 * MIB..30 * MIB).contains(&stored), "{stored}");
    let total: u64 = runs
        .iter()
        .map(|run| run["length"].as_u64().expect("a number"))
        .sum();
    assert_eq!(total, SIZE);
}

#[test]
fn qemu_img_keeps_a_qcow2_image_in_it() {
    let fixture = Fixture::new();
    let image = fixture.path("image");
    let file = File::create(&image).expect("a file");
    file.write_all_at(&noise(3, 9 << 20), MIB).expect("room");
    file.set_len(200 * MIB).expect("a sparse file");
    let image = image.to_str().expect("UTF-8");
    let uri = &fixture.uri();
    let convert = ["convert", "-n", "-f", "raw", "-O", "qcow2", image, uri];
    qemu("qemu-img", &["create", "-f", "qcow2", uri, "200M"]);
    qemu("qemu-img", &convert);
    qemu("qemu-img", &["check", "-f", "qcow2", uri]);
    let compare = ["compare", "-f", "raw", "-F", "qcow2", image, uri];
    qemu("qemu-img", &compare);
}

#[test]
fn qemu_io_writes_zeroes_discards_and_verifies() {
    let fixture = Fixture::new();
    let mut arguments = vec!["-f".to_owned(), "raw".to_owned()];
    for command in [
        "write -P 0xab 0 8M",
        "read -P 0xab 0 8M",
        "aio_write -P 0x11 1M 64k",
        "aio_write -P 0x22 2M 1M",
        "aio_flush",
        "read -P 0x11 1M 64k",
        "read -P 0x22 2M 1M",
        "write -z 3M 1M",
        "read -P 0 3M 1M",
        "write -z -u 4M 1M",
        "read -P 0 4M 1M",
        "discard 5M 1M",
        "read -P 0 5M 1M",
        "write -f -P 0x33 6291457 513",
        "read -P 0x33 6291457 513",
        "read -P 0xab 7M 1M",
        "flush",
    ] {
        arguments.extend(["-c".to_owned(), command.to_owned()]);
    }
    arguments.push(fixture.uri());
    let said = run("qemu-utils", "qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote_at_any_alignment() {
    let fixture = Fixture::new();
    let uri = format!("--uri={}", fixture.uri());
    for shape in [
        &["--rw=randwrite", "--bs=4k", "--iodepth=32"][..],
        &["--rw=randrw", "--bs=1m", "--iodepth=8"],
        &[
            "--rw=randwrite",
            "--bsrange=512-96k",
            "--bs_unaligned",
            "--iodepth=16",
        ],
        &["--rw=trimwrite", "--bs=64k", "--iodepth=8"],
    ] {
        let common = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--size=64m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=7",
        ];
        run("fio", "fio", &[&common, shape].concat());
    }
}
