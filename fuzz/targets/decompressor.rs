//! Bytes that no compressor wrote.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uzram::fuzzing::decompressor(input));
