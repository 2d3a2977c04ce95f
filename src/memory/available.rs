//! How much memory there is for this process: the machine's, or less by the limits of its control groups
//! (cgroups(7)), as in a container.

use std::fs;
use std::path::Path;

use rustix::system::sysinfo;

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

/// Bytes of memory that this process may come to have, all that others have of it included.
pub(crate) fn available() -> u64 {
    let system = sysinfo();
    let machine = system.totalram.saturating_mul(system.mem_unit.into());
    let ours = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_of(&ours, Path::new(GROUPS)).map_or(machine, |limit| limit.min(machine))
}

/// The least limit of the control groups that `/proc/PID/cgroup` lists, and of those around them, if any has one.
fn limit_of(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let group = root.join(path.trim_start_matches('/'));
        let around = group.ancestors().take_while(|dir| dir.starts_with(&root));
        // One without a limit says `max`, or has no such file.
        let limit = |dir: &Path| {
            let text = fs::read_to_string(dir.join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        around.filter_map(limit).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_a_group_and_those_around_it_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let limit = |file: &str, value: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("a directory")).expect("room");
            fs::write(path, format!("{value}\n")).expect("room");
        };
        limit("memory.max", "max");
        limit("a/memory.max", "5000");
        limit("a/b/memory.max", "9000");
        limit("c/memory.max", "max");
        limit("memory/memory.limit_in_bytes", "9223372036854771712");
        limit("memory/d/memory.limit_in_bytes", "7000");
        for (groups, least) in [
            ("0::/a/b\n", Some(5000)),
            ("0::/a\n", Some(5000)),
            ("0::/c\n", None),
            ("0::/\n", None),
            // As in a container that does not see its own group's directory.
            ("0::/c/gone\n", None),
            ("0::/a/gone\n", Some(5000)),
            ("3:cpu,memory:/d\n2:pids:/a\n", Some(7000)),
            ("4:memory:/gone\n", Some(9_223_372_036_854_771_712)),
            ("4:memory:/d\n0::/a/b\n", Some(5000)),
            ("1:name=systemd:/a\n", None),
            ("", None),
        ] {
            assert_eq!(limit_of(groups, root.path()), least, "{groups:?}");
        }
    }

    #[test]
    fn there_is_memory_here() {
        assert!(available() > 0);
    }
}
