//! The state directory: one per sidecar, locked, private. Without one the sidecar works and remembers nothing.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keel_certs::{Namespace, PodName};
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// A directory that this process alone may use, until it is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why a state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// It cannot be created or written.
    #[error("the state directory {path} cannot be written: {source}")]
    Unwritable {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another sidecar uses it.
    #[error(
        "the state directory {path} is in use by the sidecar with process id {holder}; give this one its own --state-dir"
    )]
    Locked {
        /// Which one.
        path: PathBuf,
        /// Who, as far as is known.
        holder: String,
    },
}

impl StateDir {
    /// Creates the directory (0700) and locks it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let unwritable = |source| StateError::Unwritable {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(unwritable)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(unwritable)?;
        let mut lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| {
                if errno != nix::errno::Errno::EWOULDBLOCK {
                    return unwritable(errno.into());
                }
                let mut holder = String::new();
                let known = (&file).take(20).read_to_string(&mut holder).is_ok()
                    && !holder.trim().is_empty();
                StateError::Locked {
                    path: path.to_owned(),
                    holder: if known {
                        holder.trim().to_owned()
                    } else {
                        "(unknown)".to_owned()
                    },
                }
            })?;
        // The lock is what counts; the number only helps people.
        let _ = lock
            .set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What a sidecar is called, and where it keeps its state.
#[derive(Debug)]
pub struct Home {
    /// The pod's name, or a made-up one that stays the same at the next start.
    pub pod: PodName,
    /// The directory, if it can be written.
    pub dir: Option<StateDir>,
}

/// The file that says what a directory was used for.
const PURPOSE: &str = "purpose";

/// How many sidecars of one user and namespace find a directory; each start beyond makes another one.
const MAX_SCAN: usize = 1000;

/// Finds the name and the state directory.
///
/// With a `pod` the directory is `given`, else `<root>/<namespace>.<pod>`. Without one the name is `<base>-<4 hex>`, kept in
/// the directory: in `given`, else in its own name. Of those that no running sidecar holds the one with the same `purpose` is
/// taken up again, so that two sidecars of one user do not change places, else the first.
///
/// # Errors
/// Only [`StateError::Locked`], of a directory that was named: two sidecars with one name would take each other's flows. A
/// directory that cannot be written is logged, and the sidecar starts without one.
pub fn find(
    given: Option<&Path>,
    root: &Path,
    namespace: &Namespace,
    pod: Option<&PodName>,
    base: &str,
    purpose: &str,
) -> Result<Home, StateError> {
    let (pod, opened) = match (given, pod) {
        (Some(path), Some(pod)) => (pod.clone(), StateDir::open(path)),
        (None, Some(pod)) => (
            pod.clone(),
            StateDir::open(&root.join(format!("{namespace}.{pod}"))),
        ),
        (Some(path), None) => {
            let opened = StateDir::open(path);
            let pod = match &opened {
                Ok(dir) => kept_name(dir.path(), base),
                Err(_) => new_name(base),
            };
            (pod, opened)
        }
        (None, None) => match free_dir(root, namespace, base, purpose) {
            Some((pod, dir)) => (pod, Ok(dir)),
            None => {
                let pod = new_name(base);
                let opened = StateDir::open(&root.join(format!("{namespace}.{pod}")));
                (pod, opened)
            }
        },
    };
    match opened {
        Ok(dir) => {
            // Without it the next start may choose another directory; nothing else depends on it.
            let _ = std::fs::write(dir.path().join(PURPOSE), purpose);
            Ok(Home {
                pod,
                dir: Some(dir),
            })
        }
        Err(error @ StateError::Locked { .. }) => Err(error),
        Err(error) => {
            tracing::warn!(
                "{error}; the sidecar starts, but after a restart without the APIServer it will know nothing"
            );
            Ok(Home { pod, dir: None })
        }
    }
}

/// The name in the file `pod`, which is made if there is none.
fn kept_name(dir: &Path, base: &str) -> PodName {
    let path = dir.join("pod");
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok(pod) = text.trim().parse()
    {
        return pod;
    }
    let pod = new_name(base);
    if let Err(error) = std::fs::write(&path, format!("{pod}\n")) {
        tracing::warn!(%error, path = %path.display(), "the sidecar's name cannot be kept; it will have another one next time");
    }
    pod
}

/// The best directory of this user and namespace that nobody holds.
fn free_dir(
    root: &Path,
    namespace: &Namespace,
    base: &str,
    purpose: &str,
) -> Option<(PodName, StateDir)> {
    let prefix = PodName::from_text(base)
        .map_or_else(|_| String::new(), |name| format!("{namespace}.{name}-"));
    let entries = std::fs::read_dir(root).ok()?.take(MAX_SCAN).flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.retain(|name| {
        name.strip_prefix(&prefix)
            .is_some_and(|rest| rest.len() == 4 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    let other = |name: &String| {
        std::fs::read_to_string(root.join(name).join(PURPOSE)).map_or(true, |text| text != purpose)
    };
    names.sort();
    names.sort_by_cached_key(other);
    names.into_iter().find_map(|name| {
        let pod = name.split_once('.')?.1.parse().ok()?;
        Some((pod, StateDir::open(&root.join(name)).ok()?))
    })
}

fn new_name(base: &str) -> PodName {
    let suffix: u16 = rand::random();
    // A base of nothing but odd characters leaves the suffix, which is always a name.
    PodName::from_text(&format!("{base}-{suffix:04x}"))
        .or_else(|_| PodName::from_text(&format!("sidecar-{suffix:04x}")))
        .unwrap_or_else(|_| unreachable!("letters, digits and a hyphen are a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace() -> Namespace {
        "default".parse().unwrap()
    }

    #[test]
    fn a_second_sidecar_on_one_directory_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let text = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(
            text.contains(&std::process::id().to_string()) && text.contains("--state-dir"),
            "{text}"
        );
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_made_up_name_stays_and_two_at_a_time_differ() {
        let root = tempfile::tempdir().unwrap();
        let start = || {
            find(
                None,
                root.path(),
                &namespace(),
                None,
                "Ann-Host.local",
                "mysql",
            )
            .unwrap()
        };
        let first = start();
        let second = start();
        assert!(
            first.pod.as_ref().starts_with("ann-host.local-"),
            "{}",
            first.pod
        );
        assert_ne!(first.pod, second.pod);
        let mut names = [first.pod.clone(), second.pod.clone()];
        names.sort();
        drop((first, second));
        assert_eq!(start().pod, names[0]);
    }

    #[test]
    fn two_of_one_user_do_not_change_places() {
        let root = tempfile::tempdir().unwrap();
        let start = |what: &str| find(None, root.path(), &namespace(), None, "ann", what).unwrap();
        let (first, second) = (start("mysql"), start("redis"));
        let names = [first.pod.clone(), second.pod.clone()];
        drop((first, second));
        let second = start("redis");
        assert_eq!([start("mysql").pod, second.pod.clone()], names);
        assert_ne!(start("mysql, redis").pod, second.pod);
    }

    #[test]
    fn a_given_directory_keeps_the_name_and_a_given_name_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let name = find(Some(dir.path()), root.path(), &namespace(), None, "ann", "")
            .unwrap()
            .pod;
        assert_eq!(
            find(Some(dir.path()), root.path(), &namespace(), None, "ann", "")
                .unwrap()
                .pod,
            name
        );
        let pod = "db-0".parse().unwrap();
        let home = find(None, root.path(), &namespace(), Some(&pod), "ann", "").unwrap();
        assert_eq!(home.dir.unwrap().path(), root.path().join("default.db-0"));
        assert_eq!(home.pod, pod);
    }

    #[test]
    fn without_a_writable_directory_it_goes_on() {
        let home = find(
            Some(Path::new("/proc/nothing/here")),
            Path::new("/proc"),
            &namespace(),
            None,
            "ann",
            "",
        )
        .unwrap();
        assert!(home.dir.is_none());
    }
}
