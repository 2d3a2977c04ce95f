//! The `uzram` command.

fn main() {}
