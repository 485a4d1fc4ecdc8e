//! Any two files, NUL between them: nothing panics, nothing is told without its place, nothing changes of itself
#![no_main]

use libfuzzer_sys::fuzz_target;
use sip_registration::pjsip_conf::{Files, Loaded, Step, load};
use std::io::{Error, ErrorKind, Result};

/// A directory with one file and one that it may include
struct Two<'a> {
    main: &'a [u8],
    other: &'a [u8],
}

impl Files for Two<'_> {
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        match path {
            "pjsip.conf" => Ok(self.main.to_vec()),
            "other.conf" => Ok(self.other.to_vec()),
            _ => Err(Error::from(ErrorKind::NotFound)),
        }
    }

    fn list(&self, _directory: &str) -> Result<Vec<String>> {
        Ok(vec!["other.conf".to_owned(), "pjsip.conf".to_owned()])
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut both = bytes.splitn(2, |byte| *byte == 0);
    let (main, other) = (
        both.next().unwrap_or_default(),
        both.next().unwrap_or_default(),
    );
    let files = Two { main, other };
    let first = load(&files, "pjsip.conf");
    told(&first);
    assert_eq!(load(&files, "pjsip.conf"), first, "the same files twice");
    let again = first.reload(&files, "pjsip.conf");
    let mut steps = again.plan(&first).steps.into_values();
    assert!(
        steps.all(|step| matches!(step, Step::Untouched | Step::Kept)),
        "a reload of the same files"
    );
    let turned = Two {
        main: other,
        other: main,
    };
    told(&first.reload(&turned, "pjsip.conf"));
});

fn told(loaded: &Loaded) {
    let _ = loaded.to_string();
    for diagnostic in loaded.diagnostics() {
        assert!(
            !diagnostic.file.is_empty() && diagnostic.line > 0,
            "{diagnostic:?}"
        );
    }
    for (name, _) in loaded.registrations() {
        assert!(
            loaded.registration(name).is_some(),
            "{name} is listed and not found"
        );
        let _ = loaded.auth_details(name);
    }
}
