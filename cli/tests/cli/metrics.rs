//! What a server tells of itself: metrics over HTTP and as a file, latencies, slow requests.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::scrub::fill;
use support::{HANG, Serve, World, eventually, signal};

fn get(socket: &Path, head: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_are_served_and_written_to_a_file() {
    let world = World::new();
    let mut server = world.serve(&[
        "vm",
        "--size=64M",
        "--mem-limit=16M",
        "--backing=spill",
        "--nbd=unix:s",
        "--metrics=unix:metrics.sock",
        "--metrics=file:vm.prom",
    ]);
    let mode = fs::metadata(world.path("metrics.sock")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
    assert!(
        fs::read_to_string(world.path("vm.prom"))
            .unwrap()
            .contains("uzram_up{")
    );
    fill(&world);
    let answer = get(&world.path("metrics.sock"), "GET /metrics HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let figure = |name: &str| -> f64 {
        let line = answer.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("{name} in\n{answer}"));
        line.trim().parse().unwrap()
    };
    assert!(figure("uzram_backing_written_pages_total{device=\"vm\"}") > 4000.0);
    for op in ["write", "eviction"] {
        let labels = format!("{{device=\"vm\",op=\"{op}\"}}");
        assert!(figure(&format!("uzram_operation_seconds_count{labels}")) > 0.0);
        assert!(figure(&format!("uzram_operation_seconds_sum{labels}")) > 0.0);
    }
    let asked = world.ok(&["metrics"]);
    assert_eq!(
        names(&asked),
        names(answer.split_once("\r\n\r\n").unwrap().1)
    );

    // One that says nothing must not keep others out for long.
    let silent = UnixStream::connect(world.path("metrics.sock")).unwrap();
    let answer = get(&world.path("metrics.sock"), "HEAD / HTTP/1.0\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    drop(silent);

    let json: Value = serde_json::from_str(&world.ok(&["stat", "vm", "--json"])).unwrap();
    assert!(
        json["latency"]["write"]["count"].as_u64() > Some(0),
        "{json}"
    );
    let table = world.ok(&["stat", "vm", "--latency"]);
    assert!(
        table.contains("P99.9") && table.contains("read back"),
        "{table}"
    );

    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
    for gone in ["metrics.sock", "vm.prom"] {
        assert!(!world.path(gone).exists(), "{gone}");
    }
}

#[test]
fn what_a_killed_server_said_of_itself_goes_with_what_else_it_left() {
    let world = World::new();
    let (socket, file) = (world.path("m.sock"), world.path("m.prom"));
    let args = [
        "vm",
        "--size=1M",
        "--metrics=unix:m.sock",
        "--metrics=file:m.prom",
    ];
    let killed = || {
        world.serve(&args).kill_9();
        assert!(socket.exists() && file.exists());
    };
    killed();
    world.ok(&["detach", "vm"]);
    assert!(!socket.exists() && !file.exists());
    killed();
    let again = world.serve(&["vm", "--size=1M"]);
    assert!(!socket.exists() && !file.exists());
    drop(again);
    killed();
    // By then they may be another server's.
    let _other = world.serve(&[&["other"], &args[1..]].concat());
    world.ok(&["detach", "vm"]);
    let answer = get(&socket, "GET /metrics HTTP/1.1\r\n\r\n");
    assert!(answer.contains("uzram_up{device=\"other\"} 1"), "{answer}");
    assert!(file.exists());
}

/// The names of the metrics in `text`.
fn names(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect()
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=1M"]);
    let text = world.ok(&["metrics"]);
    let dashboard = include_str!("../../../fixtures/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let asked: Vec<_> = targets
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    let asked = asked.join(" ");
    let word = |c: char| !(c.is_alphanumeric() || c == '_');
    let asked: BTreeSet<_> = asked
        .split(word)
        .filter(|word| word.starts_with("uzram_"))
        .collect();
    let known = names(&text);
    assert!(asked.len() > 20, "{asked:?}");
    assert!(
        asked.is_subset(&known),
        "{:?}",
        asked.difference(&known).collect::<Vec<_>>()
    );
}

#[test]
fn what_is_slow_is_logged() {
    let world = World::new();
    let log = world.path("log");
    // No request of nbdcopy's is compressed like that in less.
    let mut command = world.command(&[
        "serve",
        "vm",
        "--size=64M",
        "--nbd=unix:s",
        "--slow=1",
        "--algorithm=zstd:19",
    ]);
    let _server = Serve::start(command.stderr(fs::File::create(&log).unwrap()));
    fill(&world);
    eventually("slow", || {
        fs::read_to_string(&log).unwrap().contains("slow write: ")
    });
    world.refused(2, &["serve", "a", "--size=1M", "--slow=0"]);
    let line = world.refused(2, &["serve", "a", "--size=1M", "--metrics=/x"]);
    assert!(
        line.contains("--metrics") && line.contains("file:PATH"),
        "{line}"
    );
}

#[test]
fn who_shows_figures_to_other_machines_is_told() {
    let world = World::new();
    for (options, is_warned) in [
        (&["--metrics=tcp:0.0.0.0:0"][..], true),
        (&["--metrics=tcp:0.0.0.0:0", "--insecure"], false),
        (&["--metrics=tcp:127.0.0.1:0"], false),
    ] {
        let log = world.path("log");
        let mut args = vec!["serve", "vm", "--size=1M"];
        args.extend(options);
        let mut command = world.command(&args);
        let mut server = Serve::start(command.stderr(fs::File::create(&log).unwrap()));
        // By its end all that it had to say is written.
        signal(server.pid(), "TERM");
        assert_eq!(server.ended(HANG), Some(0));
        let said = fs::read_to_string(&log).unwrap();
        assert_eq!(
            said.contains("other machines can read"),
            is_warned,
            "{said}"
        );
    }
}
