//! Tells the program its version, with the commit it is built from where there is git: `0.1.0 (e02b6df123)`; and that
//! commit's day, for the man pages.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    if let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) {
        version = format!("{version} ({commit})");
    }
    println!("cargo:rustc-env=UZRAM_VERSION={version}");
    let day = git(&["log", "-1", "--format=%cs"]).unwrap_or_default();
    println!("cargo:rustc-env=UZRAM_DAY={day}");
    // Grows with each commit that is made or checked out.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
