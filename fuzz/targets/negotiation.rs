//! Everything a client says, from its flags on.
#![no_main]

mod conversation;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|said: &[u8]| {
    let heard = conversation::play(said);
    assert!(heard.starts_with(b"NBDMAGICIHAVEOPT"));
});
