//! How the loader reads files: behind a trait, so that what reads them can be tested without any.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where the files of a configuration come from
///
/// Paths are as the configuration writes them: relative ones are relative to the directory of the configuration, also
/// in an included file that is elsewhere.
pub trait Files {
    /// The whole content of a file.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;

    /// The names in a directory, `""` being that of the configuration, for an `#include` with `*`, `?` or `[…]`.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;
}

/// The files of a directory, as `/etc/asterisk`
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

impl Directory {
    /// Relative paths are relative to this directory.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl Files for Directory {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let path = self.0.join(path);
        // A pipe or a device may never end.
        if !fs::metadata(&path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let mut content = Vec::new();
        fs::File::open(path)?
            .take(LARGEST + 1)
            .read_to_end(&mut content)?;
        if content.len() as u64 > LARGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "larger than 64 MiB",
            ));
        }
        Ok(content)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.0.join(Path::new(directory)))?;
        // A name that is no UTF-8 cannot have been meant by a pattern in a text.
        entries
            .filter_map(|entry| {
                entry
                    .map(|entry| entry.file_name().into_string().ok())
                    .transpose()
            })
            .collect()
    }
}

/// A hundred thousand sections have some 30 MiB.
const LARGEST: u64 = 64 << 20;

/// The files that a path stands for, in order; the path itself where it has nothing to expand
///
/// At most one more than `most`.
pub(super) fn expand(files: &dyn Files, path: &str, most: usize) -> Vec<String> {
    let magic = |part: &str| part.contains(['*', '?', '[']);
    if !magic(path) {
        return vec![path.to_owned()];
    }
    let (root, relative) = match path.strip_prefix('/') {
        Some(relative) => ("/", relative),
        None => ("", path),
    };
    let mut found = vec![root.to_owned()];
    let mut listed = false;
    for part in relative.split('/').filter(|part| !part.is_empty()) {
        listed |= magic(part);
        let mut next = Vec::new();
        for directory in &found {
            let join = |name: &str| match directory.as_str() {
                "" => name.to_owned(),
                "/" => format!("/{name}"),
                _ => format!("{directory}/{name}"),
            };
            if !listed || part == "." || part == ".." {
                next.push(join(part));
                continue;
            }
            let pattern: Vec<char> = part.chars().collect();
            let mut names = files.list(directory).unwrap_or_default();
            names.retain(|name| {
                (part.starts_with('.') || !name.starts_with('.')) && fits(&pattern, name)
            });
            names.sort_unstable();
            next.extend(names.iter().map(|name| join(name)));
            if next.len() > most {
                next.truncate(most + 1);
                break;
            }
        }
        found = next;
    }
    found
}

/// Whether a name fits a pattern with `*`, `?` and `[…]`; never longer than the product of both lengths.
fn fits(pattern: &[char], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut pos) = (0, 0);
    // Where the last star was, and up to where it has eaten.
    let mut star: Option<(usize, usize)> = None;
    while pos < name.len() {
        let step = match (pattern.get(at), name.get(pos)) {
            (Some('*'), _) => {
                star = Some((at, pos));
                at += 1;
                continue;
            }
            (Some('?'), _) => Some(1),
            (Some('['), Some(c)) => match class(pattern.get(at..).unwrap_or_default(), *c) {
                Some((true, length)) => Some(length),
                Some((false, _)) => None,
                // No closing bracket: it stands for itself.
                None => (*c == '[').then_some(1),
            },
            (Some(wanted), Some(c)) => (wanted == c).then_some(1),
            _ => None,
        };
        match (step, &mut star) {
            (Some(length), _) => {
                at += length;
                pos += 1;
            }
            (None, Some((from, eaten))) => {
                *eaten += 1;
                at = *from + 1;
                pos = *eaten;
            }
            (None, None) => return false,
        }
    }
    pattern
        .get(at..)
        .is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

/// Whether a character is in the class that a pattern starts with, and how long that is.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = 1 + usize::from(negated);
    let end = first + 1 + pattern.get(first + 1..)?.iter().position(|c| *c == ']')?;
    let mut inside = false;
    let mut at = first;
    while at < end {
        let low = *pattern.get(at)?;
        let range = pattern.get(at + 1) == Some(&'-') && at + 2 < end;
        let high = if range { *pattern.get(at + 2)? } else { low };
        inside |= (low..=high).contains(&c);
        at += if range { 3 } else { 1 };
    }
    Some((inside != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_those_of_a_shell() {
        for (pattern, name, fit) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("pjsip_*_?.conf", "pjsip_trunk_1.conf", true),
            ("pjsip_*_?.conf", "pjsip_trunk_12.conf", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]x]", "]", true),
            ("[a-]", "-", true),
            ("[x", "[x", true),
            ("", "", true),
            ("*", "", true),
            ("**a**", "bab", true),
        ] {
            let pattern: Vec<char> = pattern.chars().collect();
            assert_eq!(fits(&pattern, name), fit, "{pattern:?} {name}");
        }
        let hostile: Vec<char> = "*a".repeat(500).chars().chain("b".chars()).collect();
        assert!(!fits(&hostile, &"a".repeat(5000)));
    }
}
