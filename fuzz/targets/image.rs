//! An image to restore that somebody made.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uzram::fuzzing::image(input));
