//! An instance identifier that outlives the program.

use crate::InstanceId;
use rand::TryRng;
use rand::rngs::SysRng;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

impl InstanceId {
    /// The identifier that is saved in a file; made at random and saved there where there is none yet (RFC 5626 §4.1).
    ///
    /// Folders have to be there, and a link is followed. It reads, and the first time writes, a small file, and waits for
    /// that. Of several programs that come first at once, one makes it and the others take what it made.
    ///
    /// # Errors
    /// What reading or writing says; [`io::ErrorKind::InvalidData`] where the file holds something else, which is left as
    /// it is: another identifier would make another device of this one.
    ///
    /// ```
    /// # use sip_registration::InstanceId;
    /// # let folder = std::env::temp_dir().join(format!("instance-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder)?;
    /// let file = folder.join("instance");
    /// let made = InstanceId::saved_in(&file)?;
    /// assert_eq!(InstanceId::saved_in(&file)?, made);
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn saved_in(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let mut bits = [0; 16];
        SysRng.try_fill_bytes(&mut bits).map_err(io::Error::other)?;
        let made = Self::from_random(bits);
        for _ in 0..LOOKS {
            match std::fs::read_to_string(path) {
                // Another program has just made it, and is about to write.
                Ok(text) if text.is_empty() => sleep(LOOK),
                Ok(text) => return parsed(&text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match OpenOptions::new().write(true).create_new(true).open(path) {
                        Ok(file) => return saved(made, file),
                        // By another program, or the link leads nowhere yet.
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => sleep(LOOK),
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        // What a crash left between making it and writing to it, or the target of a link.
        saved(made, File::create(path)?)
    }
}

/// How often the file is looked at while it is empty, and what is between: a program that lives has written by then
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(10);

/// Written at once, and on the disk before anybody hears of it.
fn saved(made: InstanceId, mut file: File) -> io::Result<InstanceId> {
    file.write_all(format!("{made}\n").as_bytes())?;
    file.sync_all()?;
    Ok(made)
}

fn parsed(text: &str) -> io::Result<InstanceId> {
    InstanceId::parse(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_kept_and_what_is_something_else_is_not_overwritten() {
        let folder = std::env::temp_dir().join(format!("sip-instance-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("id");
        let made = InstanceId::saved_in(&path).expect("made");
        assert_eq!(InstanceId::saved_in(&path).expect("read"), made);
        assert_ne!(
            InstanceId::saved_in(folder.join("other")).expect("made"),
            made
        );
        std::fs::write(&path, "").expect("written");
        let again = InstanceId::saved_in(&path).expect("made");
        assert_eq!(InstanceId::saved_in(&path).expect("read"), again);

        std::fs::write(&path, "not a urn").expect("written");
        let error = InstanceId::saved_in(&path).expect_err("no urn");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "not a urn");
        // The beginning of one is something else, too.
        std::fs::write(&path, made.as_str().split_at(20).0).expect("written");
        let error = InstanceId::saved_in(&path).expect_err("no urn");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = InstanceId::saved_in(folder.join("none/id")).expect_err("no folder");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn who_comes_first_at_once_has_the_same() {
        let folder = std::env::temp_dir().join(format!("sip-instances-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        for round in 0..50 {
            let path = &folder.join(round.to_string());
            let start = &std::sync::Barrier::new(8);
            let made: Vec<_> = std::thread::scope(|scope| {
                let start = || {
                    start.wait();
                    InstanceId::saved_in(path).expect("made or read")
                };
                let runs: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
                let runs = runs.into_iter();
                runs.map(|run| run.join().expect("no panic")).collect()
            });
            let saved = InstanceId::saved_in(path).expect("read");
            assert!(made.iter().all(|made| *made == saved), "{made:?} {saved}");
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_and_one_that_leads_nowhere_is_filled() {
        let folder = std::env::temp_dir().join(format!("sip-links-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (link, file) = (folder.join("link"), folder.join("file"));
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        let made = InstanceId::saved_in(&link).expect("made");
        assert_eq!(InstanceId::saved_in(&file).expect("read"), made);
        assert!(link.is_symlink());
        let error = InstanceId::saved_in(&folder).expect_err("a folder");
        assert_ne!(error.kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
