//! `uzram.toml`.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Entry, Key, Value, Wrong};
use crate::base::spelling;

/// The devices of a file.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, Wrong> {
    let ends: Vec<_> = text.match_indices('\n').map(|(at, _)| at).collect();
    let line_of = |at: usize| ends.partition_point(|&end| end < at) + 1;
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        Wrong::new(line, error.message())
    })?;
    let mut entries = Vec::new();
    for (name, value) in table.get_ref() {
        let line = line_of(name.span().start);
        let shown = name.get_ref();
        let DeValue::Table(keys) = value.get_ref() else {
            let reason = format!("{shown} stands outside of a device: start with a line [NAME]");
            return Err(Wrong::new(line, reason));
        };
        let named = shown.parse().map_err(|reason| Wrong::new(line, reason))?;
        let keys = keys.iter().map(|(key, value)| {
            let (line, name) = (line_of(key.span().start), spelling::option(key.get_ref()));
            let value = value_of(value).map_err(|reason| {
                let reason = format!("{name}: {reason}");
                Wrong::new(line, reason)
            })?;
            Ok(Key { line, name, value })
        });
        let mut keys = keys.collect::<Result<Vec<_>, _>>()?;
        keys.sort_by_key(|key| key.line);
        entries.push(Entry {
            line,
            dir: PathBuf::new(),
            name: named,
            keys,
        });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn value_of(value: &Spanned<DeValue<'_>>) -> Result<Value, &'static str> {
    let words = match value.get_ref() {
        DeValue::Boolean(flag) => return Ok(Value::Flag(*flag)),
        DeValue::Array(array) => array.iter().map(word_of).collect::<Option<_>>(),
        _ => word_of(value).map(|word| vec![word]),
    };
    words
        .map(Value::Words)
        .ok_or("use a string, a whole number, true or false, or an array of strings")
}

fn word_of(value: &Spanned<DeValue<'_>>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        _ => None,
    }
}
