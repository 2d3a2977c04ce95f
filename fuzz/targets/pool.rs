//! Steps on an allocator.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uzram::fuzzing::pool(input));
