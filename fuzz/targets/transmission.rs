//! Requests, after a handshake that the first byte chooses: even for simple replies, odd for
//! structured ones and all metadata contexts.
#![no_main]

mod conversation;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((mode, requests)) = input.split_first() else {
        return;
    };
    let structured = mode % 2 == 1;
    let handshake = handshake(structured);
    let skipped = conversation::play(&handshake).len();
    let heard = conversation::play(&[&handshake, requests].concat());
    if structured {
        check_replies(&heard[skipped..]);
    }
});

fn handshake(structured: bool) -> Vec<u8> {
    let mut said = 3u32.to_be_bytes().to_vec();
    let mut option = |number: u32, data: &[u8]| {
        said.extend(b"IHAVEOPT");
        said.extend(number.to_be_bytes());
        said.extend((data.len() as u32).to_be_bytes());
        said.extend(data);
    };
    if structured {
        option(8, &[]);
        let mut queries = 0u32.to_be_bytes().to_vec();
        queries.extend(2u32.to_be_bytes());
        for name in ["base:allocation", "uzram:state"] {
            queries.extend((name.len() as u32).to_be_bytes());
            queries.extend(name.as_bytes());
        }
        option(10, &queries);
    }
    option(7, &[0; 6]);
    said
}

/// With structured replies every reply says how long it is: they must add up.
fn check_replies(mut heard: &[u8]) {
    while let Some((magic, rest)) = heard.split_first_chunk::<4>() {
        heard = match u32::from_be_bytes(*magic) {
            0x6744_6698 => &rest[12..],
            0x668e_33ef => {
                let length = rest[12..16].try_into().expect("4 bytes");
                &rest[16 + u32::from_be_bytes(length) as usize..]
            }
            other => panic!("a reply that begins with {other:#x}"),
        };
    }
    assert!(heard.is_empty());
}
