//! What root is told who looks for a device of the user that called sudo: root believes nothing that stands in another
//! user's RUNDIR.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::OVERRIDE;
use crate::base::name::Name;

/// How to reach the device `name` of the user that called sudo, if there was one and there seems to be such a device.
pub(super) fn hint(name: &Name) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let uid: u32 = env::var("SUDO_UID").ok()?.parse().ok()?;
    let places = [
        format!("/run/user/{uid}/uzram"),
        format!("/tmp/uzram-{uid}"),
    ];
    places
        .iter()
        .find_map(|place| of_user(uid, Path::new(place), name))
}

fn of_user(uid: u32, rundir: &Path, name: &Name) -> Option<String> {
    let dir: PathBuf = rundir.join(name.as_str());
    let found = fs::symlink_metadata(dir).ok()?;
    (found.is_dir() && found.uid() == uid).then(|| {
        let rundir = rundir.display();
        format!(
            "; user {uid} has one: sudo -u '#{uid}' {OVERRIDE}={rundir} uzram VERB {name} reaches it, but for root to \
             attach it, root has to start it: sudo uzram serve {name}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_the_user_s_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("vm")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let told = |uid, name: &str| of_user(uid, dir.path(), &name.parse().unwrap());
        let hint = told(uid, "vm").unwrap();
        assert!(hint.contains("uzram VERB vm"), "{hint}");
        assert_eq!(told(uid, "file"), None);
        assert_eq!(told(uid, "nothing"), None);
        assert_eq!(told(uid + 1, "vm"), None);
    }
}
