//! One name for one thing: what uzram and zram call differently, and `-` and `_`, stand for each other.

/// Options and keys of a configuration file, beside the attributes that they set.
const NAMES: [(&str, &str); 3] = [
    ("size", "disksize"),
    ("backing", "backing_dev"),
    ("algorithm", "comp_algorithm"),
];

/// The option, without its dashes, that `text` stands for: `disksize` and `mem_limit` are `size` and `mem-limit`.
pub(crate) fn option(text: &str) -> String {
    let attribute = text.replace('-', "_");
    match NAMES.iter().find(|(_, name)| *name == attribute) {
        Some((option, _)) => (*option).to_owned(),
        None => attribute.replace('_', "-"),
    }
}

/// The attribute that `text` stands for: `size` and `mem-limit` are `disksize` and `mem_limit`.
pub(crate) fn attribute(text: &str) -> String {
    match NAMES.iter().find(|(option, _)| *option == text) {
        Some((_, attribute)) => (*attribute).to_owned(),
        None => text.replace('-', "_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_stands_for_the_other() {
        for (text, meant) in [
            ("disksize", "size"),
            ("backing_dev", "backing"),
            ("backing-dev", "backing"),
            ("comp-algorithm", "algorithm"),
            ("mem_limit", "mem-limit"),
            ("mem-limit", "mem-limit"),
            ("backing-size", "backing-size"),
        ] {
            assert_eq!(option(text), meant);
        }
        for (text, meant) in [
            ("size", "disksize"),
            ("backing", "backing_dev"),
            ("algorithm", "comp_algorithm"),
            ("mem-limit", "mem_limit"),
            ("mm_stat", "mm_stat"),
        ] {
            assert_eq!(attribute(text), meant);
        }
    }
}
