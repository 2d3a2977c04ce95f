//! Greeting and options.

use crate::client::*;
use crate::device::SIZE;

const WRITABLE: u16 = 0b1101_0110_1101;
const SEND_DF: u16 = 1 << 7;

#[test]
fn export_name_gives_size_and_flags_with_zeroes_unless_declined() {
    let fixture = serve();
    for (flags, zeroes) in [(1, 124), (3, 0)] {
        for name in [NAME, ""] {
            let mut client = fixture.connect();
            client.greet(flags);
            client.send_option(EXPORT_NAME, name.as_bytes());
            assert_eq!(client.be64(), SIZE);
            assert_eq!(client.be16(), WRITABLE);
            assert_eq!(client.receive(zeroes), vec![0; zeroes]);
            client.request(READ, 0, 0, 512, &[]);
            assert_eq!(client.simple_reply(512), (0, vec![0; 512]));
        }
    }
}

#[test]
fn export_name_works_without_fixed_newstyle_and_nothing_else_does() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(0);
    client.send_option(EXPORT_NAME, NAME.as_bytes());
    assert_eq!(client.receive(134)[..8], SIZE.to_be_bytes());

    let mut client = fixture.connect();
    client.greet(0);
    client.send_option(LIST, &[]);
    client.assert_closed();
}

#[test]
fn an_unknown_name_is_refused_and_the_handshake_goes_on() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    client.structure();
    for option in [INFO, GO] {
        let replies = client.option(option, &info_request("other", &[]));
        let [(REP_ERR_UNKNOWN, message)] = &replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(message, b"there is no export of that name");
    }
    for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let data = queries("other", &["base:allocation"]);
        assert_eq!(client.verdict(option, &data), REP_ERR_UNKNOWN);
    }
    client.go("");

    let mut client = fixture.connect();
    client.greet(3);
    client.send_option(EXPORT_NAME, b"other");
    client.assert_closed();
}

#[test]
fn list_names_the_export_and_carries_no_data() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    let replies = client.option(LIST, &[]);
    assert_eq!(replies, [(REP_SERVER, string(NAME)), (REP_ACK, Vec::new())]);
    assert_eq!(client.verdict(LIST, b"x"), REP_ERR_INVALID);
    client.go(NAME);
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    assert_eq!(client.verdict(ABORT, b"ignored"), REP_ACK);
    client.assert_closed();
}

#[test]
fn info_answers_what_is_asked_and_changes_nothing() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    let replies = client.option(INFO, &info_request("", &[3, 1, 2, 0, 999]));
    let mut export = vec![0, 0];
    export.extend(SIZE.to_be_bytes());
    export.extend(WRITABLE.to_be_bytes());
    let block_size: Vec<u8> = [0, 3]
        .into_iter()
        .chain(
            [1u32, 4096, 32 << 20]
                .into_iter()
                .flat_map(u32::to_be_bytes),
        )
        .collect();
    assert_eq!(replies.len(), 5);
    assert_eq!(replies[0], (REP_INFO, export));
    assert_eq!(replies[1], (REP_INFO, b"\0\x01disk".to_vec()));
    assert_eq!(replies[2].1[..2], [0, 2]);
    assert_eq!(replies[3], (REP_INFO, block_size));
    assert_eq!(replies[4], (REP_ACK, Vec::new()));
    assert_eq!(client.go(NAME), WRITABLE);
}

#[test]
fn do_not_fragment_is_offered_with_structured_replies_only() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    assert_eq!(client.verdict(STRUCTURED_REPLY, b"x"), REP_ERR_INVALID);
    client.structure();
    assert_eq!(client.go(NAME), WRITABLE | SEND_DF);
}

#[test]
fn a_read_only_export_says_so_and_refuses_writes() {
    let fixture = serve_with(|config| config.read_only = true);
    let mut client = fixture.connect();
    client.greet(3);
    assert_eq!(client.go(NAME), 0b101_0000_1111);
    client.request(WRITE, 0, 0, 4, b"data");
    assert_eq!(client.simple_reply(0).0, EPERM);
    client.request(TRIM, 0, 0, 4096, &[]);
    assert_eq!(client.simple_reply(0).0, EPERM);
    client.request(READ, 0, 0, 4, &[]);
    assert_eq!(client.simple_reply(4), (0, vec![0; 4]));
}

#[test]
fn unknown_options_are_skipped_whatever_they_carry() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    for option in [0, 4, 11, 99, u32::MAX] {
        for data in [&b""[..], &[0xff; 5000], &[0; 64 << 10]] {
            assert_eq!(client.verdict(option, data), REP_ERR_UNSUP);
        }
    }
    client.go(NAME);
}

#[test]
fn malformed_options_are_refused_and_the_handshake_goes_on() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    client.structure();
    let mut long = info_request(NAME, &[3]);
    long.push(0);
    let mut lying_name = info_request(NAME, &[]);
    lying_name[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut lying_count = info_request(NAME, &[3]);
    let count_at = lying_count.len() - 4;
    lying_count[count_at..count_at + 2].copy_from_slice(&[0xff, 0xff]);
    for data in [
        &[][..],
        &[0, 0],
        &[0, 0, 0, 0, 0],
        &long,
        &lying_name,
        &lying_count,
    ] {
        assert_eq!(client.verdict(INFO, data), REP_ERR_INVALID, "{data:?}");
        assert_eq!(client.verdict(GO, data), REP_ERR_INVALID, "{data:?}");
    }

    let mut trailing = queries(NAME, &["base:"]);
    trailing.push(0);
    let mut lying_queries = queries(NAME, &["base:"]);
    lying_queries[11] = 200;
    let mut lying_query = queries(NAME, &["base:"]);
    lying_query[12] = 0xff;
    for data in [&[][..], &[0; 5], &trailing, &lying_queries, &lying_query] {
        for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
            assert_eq!(client.verdict(option, data), REP_ERR_INVALID, "{data:?}");
        }
    }
    client.go(NAME);
}

fn context_names(replies: &[(u32, Vec<u8>)]) -> Vec<String> {
    replies
        .iter()
        .filter(|(kind, _)| *kind == REP_META_CONTEXT)
        .map(|(_, data)| String::from_utf8(data[4..].to_vec()).expect("UTF-8"))
        .collect()
}

#[test]
fn contexts_are_listed_by_name_by_namespace_or_all() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    client.structure();
    let (allocation, state) = ("base:allocation", "uzram:state");
    for (asked, expected) in [
        (&[][..], &[allocation, state][..]),
        (&["base:"], &[allocation]),
        (&["uzram:"], &[state]),
        (
            &["uzram:state", "base:", "base:allocation"],
            &[allocation, state],
        ),
        (&["base:other", "qemu:dirty-bitmap:x", "nonsense", ""], &[]),
    ] {
        let replies = client.option(LIST_META_CONTEXT, &queries(NAME, asked));
        assert_eq!(context_names(&replies), expected, "{asked:?}");
        assert_eq!(replies.last().expect("a reply").0, REP_ACK);
    }
}

#[test]
fn contexts_are_selected_by_whole_name_with_ids_of_their_own() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    let data = queries(NAME, &["base:allocation"]);
    assert_eq!(client.verdict(SET_META_CONTEXT, &data), REP_ERR_INVALID);
    client.structure();
    for asked in [&[][..], &["base:"], &["uzram:", "other:x"]] {
        let replies = client.option(SET_META_CONTEXT, &queries(NAME, asked));
        assert_eq!(context_names(&replies), [""; 0], "{asked:?}");
    }
    let both = queries(NAME, &["uzram:state", "base:allocation", "uzram:state"]);
    let replies = client.option(SET_META_CONTEXT, &both);
    assert_eq!(context_names(&replies).len(), 2);
    assert_ne!(replies[0].1[..4], replies[1].1[..4]);
}

#[test]
fn a_failed_selection_forgets_the_one_before() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    client.structure();
    let data = queries(NAME, &["base:allocation"]);
    assert_eq!(client.verdict(SET_META_CONTEXT, &data), REP_ACK);
    let data = queries("other", &["base:allocation"]);
    assert_eq!(client.verdict(SET_META_CONTEXT, &data), REP_ERR_UNKNOWN);
    client.go(NAME);
    client.request(BLOCK_STATUS, 0, 0, 4096, &[]);
    assert_eq!(client.structured_error().0, EINVAL);
}

#[test]
fn names_are_at_most_4096_bytes_long() {
    let fixture = serve_with(|config| config.export = "n".repeat(4096));
    let name = "n".repeat(4096);
    let mut client = fixture.connect();
    client.greet(3);
    let longer = info_request(&"n".repeat(4097), &[]);
    assert_eq!(client.verdict(GO, &longer), REP_ERR_TOO_BIG);
    let longer = queries(&name, &[&"q".repeat(4097)]);
    assert_eq!(client.verdict(LIST_META_CONTEXT, &longer), REP_ERR_TOO_BIG);
    client.go(&name);

    let mut client = fixture.connect();
    client.greet(3);
    client.send_option(EXPORT_NAME, name.as_bytes());
    assert_eq!(client.be64(), SIZE);

    let mut client = fixture.connect();
    client.greet(3);
    client.send_option_header(EXPORT_NAME, 4097);
    client.assert_closed();
}
