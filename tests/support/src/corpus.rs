//! Real pages: those of this machine's own files.

use std::path::{Path, PathBuf};

use crate::{PAGE_SIZE, Page};

/// Up to `count` pages that are not all zero, of the files below `roots` that are `wanted`.
pub fn pages_under(roots: &[&Path], count: usize, wanted: impl Fn(&Path) -> bool) -> Vec<Page> {
    let mut pages = Vec::with_capacity(count);
    let mut dirs: Vec<PathBuf> = roots.iter().map(|root| root.to_path_buf()).collect();
    while let (Some(dir), true) = (dirs.pop(), pages.len() < count) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                dirs.push(path);
            } else if path.is_file() && wanted(&path) {
                let bytes = std::fs::read(&path).unwrap_or_default();
                let (whole, _) = bytes.as_chunks::<PAGE_SIZE>();
                pages.extend(
                    whole
                        .iter()
                        .filter(|page| page.iter().any(|&byte| byte != 0)),
                );
            }
            if pages.len() >= count {
                break;
            }
        }
    }
    pages.truncate(count);
    pages
}
