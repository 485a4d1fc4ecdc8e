//! Each rule of `pjsip.conf`, and each refusal, as a file with its expected result beside it.

use crate::pjsip_files::Dice;
use sip_registration::pjsip_conf::{Diagnostic, Directory, Files, Loaded, load};
use std::collections::BTreeSet;
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

/// What a finding of some kind has beside file and line; whatever has a value has an option, and so on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Has {
    /// It is about a file: not even a line.
    File,
    /// It is about a line that is no option: the section in which it stands, if any.
    Line,
    /// It is about a whole section or its header.
    Section,
    /// The option, if the line has one. What was written for it may be a secret, as nobody knows what it is.
    Option,
    /// The option and what was written, unless the option is not there, has no value, or is for a secret.
    Value,
}

/// All kinds of findings. A new one is put here, and into a file of the corpus.
const KINDS: [(Has, &[&str]); 5] = [
    (Has::File, &["Unreadable"]),
    (
        Has::Line,
        &[
            "TooMuch",
            "LineTooLong",
            "UnterminatedComment",
            "StrayCommentEnd",
            "CommentDepth",
            "NoEqualSign",
            "NoName",
            "Escape",
        ],
    ),
    (
        Has::Section,
        &[
            "NoClosingBracket",
            "NoClosingParenthesis",
            "SpaceBeforeOptions",
            "TextAfterHeader",
            "EmptyParent",
            "UnknownParent",
            "NothingToAddTo",
            "Filter",
            "NoType",
            "Duplicate",
            "SecondOf",
            "NotReloadable",
            "Kept",
        ],
    ),
    (
        Has::Option,
        &[
            "NotUtf8",
            "NoSection",
            "CutByComment",
            "Exec",
            "UnknownDirective",
            "UnknownOption",
            "IgnoredOption",
        ],
    ),
    (
        Has::Value,
        &[
            "IncludeMissing",
            "IncludeLoop",
            "IncludeDepth",
            "DirectiveArgument",
            "UnknownType",
            "SeveralTypes",
            "NotNumber",
            "NotBoolean",
            "Missing",
            "NotOneOf",
            "Limited",
            "Registration",
            "Doubtful",
            "UriTransport",
            "NoTransport",
            "UnknownTransport",
            "TransportMismatch",
            "Mechanism",
            "Negotiation",
            "UnknownAuth",
            "UnknownEndpoint",
            "Credentials",
            "HashWithoutRealm",
            "DefaultAlgorithm",
            "GoogleOauth",
            "UnsupportedProtocol",
            "OnlyListens",
            "Bind",
            "Tls",
            "Transport",
        ],
    ),
];

/// The kinds that no file of the corpus has: a file that is not there, one of gigabytes, and what a reload adds.
const ELSEWHERE: [&str; 4] = ["Unreadable", "TooMuch", "NotReloadable", "Kept"];

/// `NotNumber` of `NotNumber`, `NotOneOf` of `NotOneOf("…")`.
fn kind(said: &Diagnostic) -> String {
    let text = format!("{:?}", said.rule);
    let end = text.find(|c: char| !c.is_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

fn check_fields(main: &str, said: &Diagnostic) {
    let kind = kind(said);
    let mut kinds = KINDS.iter();
    let has = kinds.find(|(_, kinds)| kinds.contains(&kind.as_str()));
    let (has, _) = has.unwrap_or_else(|| panic!("{main}: what has a finding of kind {kind}?"));
    let bytes = fs::read(corpus().join(&*said.file)).expect("the file that is named");
    let content = String::from_utf8_lossy(&bytes);
    let content = content.trim_start_matches('\u{feff}');
    let lines: Vec<_> = content.lines().take(said.line as usize).collect();
    assert_eq!(lines.len(), said.line as usize, "{said}");
    let text = lines.last().map(|line| line.trim()).expect("a line");
    // Only before the first section a line stands in none, and an included file begins in that of the other one.
    let outside = *said.file == *main && !lines.iter().any(|line| line.trim().starts_with('['));
    assert_eq!(said.section.is_none(), outside, "{said}");
    // A name that is none can be the fault of the section only.
    let unnamed = said.section.as_deref() == Some("") && kind == "Transport";
    match has {
        Has::File => panic!("{said}: it has a line"),
        Has::Line | Has::Section => assert_eq!((&said.option, &said.value), (&None, &None)),
        Has::Option => {
            assert_eq!(said.option.is_some(), text.contains(['=', '#']), "{said}");
            assert_eq!(said.value, None, "{said}");
        }
        Has::Value if unnamed => {}
        Has::Value => {
            let option = said.option.as_deref().unwrap_or_else(|| panic!("{said}"));
            // What is not written has neither value nor line of its own.
            let absent = text.starts_with('[');
            let secret = ["md5_cred", "password_digest", "password"].contains(&option);
            let empty = text == option;
            assert_eq!(said.value.is_none(), absent || secret || empty, "{said}");
        }
    }
    if let Some(option) = said.option.as_deref().filter(|_| !text.starts_with('[')) {
        let broken = option.contains('\u{fffd}');
        let text = text.trim_start_matches('\\');
        assert!(broken || text.starts_with(option), "{said}: {text}");
    }
}

#[test]
fn every_finding_has_its_file_line_section_option_and_value() {
    let mut seen = BTreeSet::new();
    for name in names() {
        for said in load(&Directory::new(corpus()), &name).diagnostics() {
            check_fields(&name, said);
            seen.insert(kind(said));
        }
    }
    let all = KINDS.iter().flat_map(|(_, kinds)| kinds.iter());
    let missing: Vec<_> = all
        .filter(|kind| !seen.contains(**kind) && !ELSEWHERE.contains(kind))
        .collect();
    assert!(missing.is_empty(), "no file shows {missing:?}");
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
    for _ in 0..=dice.index(6) {
        let at = dice.index(content.len() + 1);
        match dice.index(5) {
            0 => drop(content.drain(at..(at + dice.index(40)).min(content.len()))),
            1 if at < content.len() => {
                content[at] = u8::try_from(dice.index(256)).unwrap_or_default()
            }
            2 => {
                let from = dice.index(content.len() + 1);
                let piece = content[from..(from + dice.index(200)).min(content.len())].to_vec();
                content.splice(at..at, piece);
            }
            _ => drop(content.splice(at..at, PIECES[dice.index(PIECES.len())].iter().copied())),
        }
    }
}

#[test]
fn damaged_files_never_panic_and_never_hang() {
    let mut dice = Dice::new(1);
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
