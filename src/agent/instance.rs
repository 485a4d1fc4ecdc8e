//! An instance identifier that outlives the program.

use crate::InstanceId;
use rand::TryRng;
use rand::rngs::SysRng;
use std::io;
use std::path::Path;

impl InstanceId {
    /// The identifier that is saved in a file; made at random and saved there where there is none yet (RFC 5626 §4.1).
    ///
    /// Folders have to be there. It reads, and the first time writes, a small file, and waits for that.
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
        match std::fs::read_to_string(path) {
            // An empty file is what a crash leaves between making it and writing to it.
            Ok(text) if text.is_empty() => {}
            Ok(text) => return parsed(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut bits = [0; 16];
        SysRng.try_fill_bytes(&mut bits).map_err(io::Error::other)?;
        let made = Self::from_random(bits);
        std::fs::write(path, format!("{made}\n"))?;
        Ok(made)
    }
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
        let error = InstanceId::saved_in(folder.join("none/id")).expect_err("no folder");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
