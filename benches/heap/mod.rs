//! Real pages for the benchmarks: the memory of a live process.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use uzram::{PAGE_SIZE, Page};

/// Builds objects of the kinds that programs have, until told to end.
const PROGRAM: &str = r#"
import json, sys
kept = []
for n in range(220_000):
    words = [f"key-{n * k % 9973}" for k in range(6)]
    kept.append({"id": n, "name": f"object {n}", "words": words, "size": n * 3.5, "next": (n, n + 1)})
index = {kept[n * 7 % len(kept)]["name"]: n for n in range(len(kept))}
text = json.dumps(kept[:60_000])
print("ready", flush=True)
sys.stdin.read()
"#;

/// Up to `count` pages that are not all zero, of the anonymous memory of a python3 with many objects.
pub(crate) fn heap_pages(count: usize) -> Vec<Page> {
    let mut python = Command::new("python3")
        .args(["-c", PROGRAM])
        .env("PYTHONHASHSEED", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut line = String::new();
    let stdout = python.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    let pages = anonymous_pages(python.id(), count);
    // It ends at the end of its input.
    let mut stdin = python.stdin.take().expect("piped");
    stdin.flush().expect("empty");
    drop(stdin);
    python.wait().expect("our child");
    pages
}

fn anonymous_pages(pid: u32, count: usize) -> Vec<Page> {
    let mut maps = String::new();
    File::open(format!("/proc/{pid}/maps"))
        .and_then(|mut file| file.read_to_string(&mut maps))
        .expect("a live process");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("our child's memory");
    let mut pages = Vec::with_capacity(count);
    for line in maps.lines() {
        // "START-END rw-p OFFSET DEVICE INODE NAME"
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.get(5).copied().unwrap_or("[heap]");
        if words[1] != "rw-p" || name != "[heap]" {
            continue;
        }
        let bound = |text: &str| u64::from_str_radix(text, 16).expect("an address");
        let (start, end) = words[0].split_once('-').expect("two addresses");
        for at in (bound(start)..bound(end)).step_by(PAGE_SIZE) {
            let mut page = [0; PAGE_SIZE];
            if memory.read_exact_at(&mut page, at).is_ok() && page.iter().any(|&byte| byte != 0) {
                pages.push(page);
            }
            if pages.len() == count {
                return pages;
            }
        }
    }
    pages
}
