//! Whether a history of reads and writes of one register could have happened one after the other.
//!
//! Every write has a value of its own, so a read names the write that it saw, and the test is
//! polynomial (Gibbons and Korach, "Testing Shared Memories", 1997). A write and its reads form a
//! cluster. If some of them end before others begin, the register must have held the value
//! from the first end to the last begin: a forward zone. If all of them overlap, it may have held it
//! for a moment between the last begin and the first end: a backward zone. There is an order if and
//! only if no read ends before its write begins, no two forward zones overlap, and no backward
//! zone lies within a forward one.

use std::collections::HashMap;

/// What a register holds; 0 at first.
pub(crate) type Value = u64;

/// Points in time, in any unit.
pub(crate) type Time = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) is_write: bool,
    pub(crate) value: Value,
    /// Before it was asked for.
    pub(crate) begin: Time,
    /// After it was answered; [`Time::MAX`] for a write that failed, which may yet take effect.
    pub(crate) end: Time,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    first_end: Time,
    last_begin: Time,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_end < self.last_begin
    }

    fn span(&self) -> (Time, Time) {
        (
            self.first_end.min(self.last_begin),
            self.first_end.max(self.last_begin),
        )
    }
}

/// Says what is wrong with a history, if anything is.
pub(crate) fn check(history: &[Operation]) -> Result<(), String> {
    let initial = Operation {
        is_write: true,
        value: 0,
        begin: 0,
        end: 0,
    };
    let writes: HashMap<Value, Operation> = std::iter::once(&initial)
        .chain(history.iter().filter(|operation| operation.is_write))
        .map(|write| (write.value, *write))
        .collect();
    let mut zones: HashMap<Value, Zone> = HashMap::new();
    for operation in std::iter::once(&initial).chain(history) {
        let write = writes.get(&operation.value);
        let write = write.ok_or_else(|| format!("nobody wrote it: {operation:?}"))?;
        if operation.end < write.begin {
            return Err(format!("{operation:?} was answered before {write:?}"));
        }
        let zone = zones.entry(operation.value).or_insert(Zone {
            first_end: Time::MAX,
            last_begin: 0,
        });
        zone.first_end = zone.first_end.min(operation.end);
        zone.last_begin = zone.last_begin.max(operation.begin);
    }
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) =
        zones.into_values().partition(Zone::is_forward);
    forward.sort_unstable_by_key(Zone::span);
    for pair in forward.windows(2) {
        if pair[1].span().0 < pair[0].span().1 {
            return Err(format!("two values were held at once: {pair:?}"));
        }
    }
    for zone in backward {
        let (start, end) = zone.span();
        // Of those that begin before it, the last one ends last.
        let before = forward.partition_point(|zone| zone.span().0 < start);
        if let Some(around) = before.checked_sub(1).map(|at| forward[at])
            && end < around.span().1
        {
            return Err(format!("{zone:?} has no time beside {around:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: Value, begin: Time, end: Time) -> Operation {
        Operation {
            is_write: true,
            value,
            begin,
            end,
        }
    }

    fn read(value: Value, begin: Time, end: Time) -> Operation {
        Operation {
            is_write: false,
            ..write(value, begin, end)
        }
    }

    #[test]
    fn histories_that_have_an_order_pass() {
        for history in [
            &[][..],
            &[read(0, 1, 2), write(1, 3, 4), read(1, 5, 6)],
            // Overlapping reads may see the old and the new value.
            &[write(1, 1, 10), read(0, 2, 3), read(1, 4, 5), read(1, 6, 7)],
            &[
                write(1, 1, 10),
                write(2, 2, 9),
                read(2, 3, 4),
                read(1, 11, 12),
            ],
            // It failed, and took effect late.
            &[
                write(1, 1, Time::MAX),
                read(0, 5, 6),
                read(1, 7, 8),
                write(2, 9, 10),
                read(2, 11, 12),
            ],
        ] {
            assert_eq!(check(history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn histories_without_an_order_do_not() {
        for history in [
            // Lost.
            &[write(1, 1, 2), read(0, 3, 4)][..],
            // Undone.
            &[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)],
            // Seen, and then not.
            &[write(1, 1, 10), read(1, 2, 3), read(0, 4, 5)],
            // Seen in two orders.
            &[
                write(1, 1, 20),
                write(2, 1, 20),
                read(1, 2, 3),
                read(2, 4, 5),
                read(1, 6, 7),
            ],
            // From the future, and from nowhere.
            &[read(1, 1, 2), write(1, 3, 4)],
            &[read(9, 1, 2)],
            // Back to the first once the second was over.
            &[write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(1, 7, 8)],
        ] {
            assert!(check(history).is_err(), "{history:?}");
        }
    }
}
