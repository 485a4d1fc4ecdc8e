//! Each rule of `pjsip.conf`, and each refusal, as a file with its expected result beside it.

use sip_registration::pjsip_conf::{Directory, Files, Loaded, load};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pjsip")
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(corpus())
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").file_name());
    let names = entries.map(|name| name.into_string().expect("a plain name"));
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".conf")).collect();
    names.sort_unstable();
    names
}

/// `BLESS=1` writes what is found; read it before you commit it.
#[test]
fn each_file_of_the_corpus_loads_as_it_says_beside_it() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = String::new();
    for name in names() {
        let found = load(&Directory::new(corpus()), &name).to_string();
        assert!(
            !found.contains("s3cr3t"),
            "{name}: a secret is shown\n{found}"
        );
        let beside = corpus().join(&name).with_extension("expected");
        if bless {
            fs::write(&beside, &found).expect("written");
        }
        let expected = fs::read_to_string(&beside).unwrap_or_default();
        if found != expected {
            wrong.push_str(&format!(
                "{name}\n--- expected\n{expected}--- found\n{found}\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_file_that_is_not_there_loads_nothing_and_says_so() {
    let loaded = load(&Directory::new(corpus()), "absent.conf");
    assert_eq!(loaded.registrations().count(), 0);
    let said = loaded.to_string();
    assert!(
        said.starts_with("absent.conf: error: cannot be read: "),
        "{said}"
    );
    // A directory, and what never ends, are no files either.
    assert!(load(&Directory::new(corpus()), "include").has_errors());
    assert!(load(&Directory::new("/"), "dev/zero").has_errors());
}

/// The corpus with one file in another version.
struct Changed {
    corpus: Directory,
    name: String,
    content: Vec<u8>,
}

impl Files for Changed {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        if path == self.name {
            Ok(self.content.clone())
        } else {
            self.corpus.read(path)
        }
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.corpus.list(directory)
    }
}

/// A generator that replays: xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or_default() % end.max(1)
    }
}

fn mutate(dice: &mut Dice, content: &mut Vec<u8>) {
    const PIECES: [&[u8]; 16] = [
        b"[",
        b"]",
        b"(",
        b")",
        b"(!)",
        b"(+)",
        b"=",
        b"+=",
        b"\n",
        b";--",
        b"--;",
        b"\\;",
        b"\n#include *.conf\n",
        b"\xff",
        b"\0",
        b"\n[a](a,a,a)\n",
    ];
    for _ in 0..=dice.below(6) {
        let at = dice.below(content.len() + 1);
        match dice.below(5) {
            0 => drop(content.drain(at..(at + dice.below(40)).min(content.len()))),
            1 if at < content.len() => {
                content[at] = u8::try_from(dice.below(256)).unwrap_or_default()
            }
            2 => {
                let from = dice.below(content.len() + 1);
                let piece = content[from..(from + dice.below(200)).min(content.len())].to_vec();
                content.splice(at..at, piece);
            }
            _ => drop(content.splice(at..at, PIECES[dice.below(PIECES.len())].iter().copied())),
        }
    }
}

#[test]
fn damaged_files_never_panic_and_never_hang() {
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(40);
    let sample = load(&Directory::new(corpus()), "sample.conf");
    let mut survivors = 0;
    for name in names() {
        let original = fs::read(corpus().join(&name)).expect("a file");
        for _ in 0..rounds {
            let mut content = original.clone();
            mutate(&mut dice, &mut content);
            let files = Changed {
                corpus: Directory::new(corpus()),
                name: name.clone(),
                content,
            };
            let loaded: Loaded = load(&files, &name);
            // Whatever was loaded can be shown, and can replace something that runs.
            assert!(loaded.to_string().lines().count() >= loaded.diagnostics().len());
            let over = sample.reload(&files, &name);
            assert!(over.plan(&sample).steps.len() >= over.registrations().count());
            survivors += loaded.registrations().count();
        }
    }
    assert!(survivors > 0, "damage that leaves nothing tests nothing");
}

/// Templates of templates that double what is inherited with each line, and includes that fan out.
#[test]
fn what_grows_without_bound_is_refused() {
    let mut doubling = String::from("[t0](!)\na=1\n");
    for level in 1..64 {
        doubling.push_str(&format!("[t{level}](!,t{0},t{0})\n", level - 1));
    }
    let name = "growing.conf".to_owned();
    let files = Changed {
        corpus: Directory::new(corpus()),
        name: name.clone(),
        content: doubling.into(),
    };
    let loaded = load(&files, &name);
    assert!(
        loaded.to_string().contains("more than 5000000 options"),
        "{loaded}"
    );

    struct Fan;
    impl Files for Fan {
        fn read(&self, path: &str) -> io::Result<Vec<u8>> {
            let deeper = path.len() + 1;
            Ok("#include x\n"
                .replace('x', &"x".repeat(deeper))
                .repeat(10)
                .into())
        }

        fn list(&self, _: &str) -> io::Result<Vec<String>> {
            Ok(Vec::new())
        }
    }
    assert!(load(&Fan, "").has_errors());

    struct Wide;
    impl Files for Wide {
        fn read(&self, path: &str) -> io::Result<Vec<u8>> {
            Ok(if path.len() > 8 {
                Vec::new()
            } else {
                b"#include *?*\n".to_vec()
            })
        }

        fn list(&self, _: &str) -> io::Result<Vec<String>> {
            Ok((0..100_000).map(|number| format!("f{number:08}")).collect())
        }
    }
    let loaded = load(&Wide, "main");
    assert!(
        loaded.to_string().contains("more than 10000 files"),
        "{loaded}"
    );
}
