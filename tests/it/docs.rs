//! What the documents name is there: tests, files, and what is in them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a text")
}

/// All Rust files below a directory
fn sources(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The functions that stand behind an attribute that makes them a test
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for below in ["src", "tests"] {
        for path in sources(&Path::new(ROOT).join(below)) {
            let mut test = false;
            for line in read(&path).lines().map(str::trim) {
                if line == "#[test]" || line.starts_with("#[tokio::test") {
                    test = true;
                } else if let Some((_, name)) = line.split_once("fn ").filter(|_| test) {
                    names.extend(name.split_once('(').map(|(name, _)| name.to_owned()));
                    test = false;
                }
            }
        }
    }
    names.extend(scenarios());
    names
}

/// The scenarios of SIPp that are played: a macro makes a test of each
fn scenarios() -> Vec<String> {
    let played = read(&Path::new(ROOT).join("tests/it/sipp.rs"));
    let files = fs::read_dir(Path::new(ROOT).join("tests/data/sipp")).expect("the scenarios");
    let names = files.map(|file| file.expect("an entry").path());
    let names = names.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    names
        .filter(|name| played.contains(&format!("\n    {name} OVER ")))
        .collect()
}

/// What stands in backticks
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the tables with a column of this name: what is in it, and the whole row
fn column<'a>(text: &'a str, name: &str) -> Vec<(&'a str, &'a str)> {
    let mut place = None;
    let mut rows = Vec::new();
    for line in text.lines() {
        let cells: Vec<_> = line.trim().trim_matches('|').split('|').collect();
        if !line.starts_with('|') {
            place = None;
        } else if place.is_none() {
            place = cells.iter().position(|cell| cell.trim() == name);
            place = place.or(Some(usize::MAX));
        } else if let Some(cell) = place.and_then(|place| cells.get(place)) {
            rows.push((*cell, line));
        }
    }
    rows
}

/// Whether a word in backticks is the name of a test: a sentence in snake case, and no metric
fn is_test_name(word: &str) -> bool {
    let sentence = word.matches('_').count() >= 4 && !word.starts_with("sip_registration");
    sentence
        && word
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

#[test]
fn each_test_that_the_documents_name_exists() {
    let (tests, mut missing) = (tests(), Vec::new());
    for document in ["docs/options.md", "docs/rfc.md", "docs/conformance.md"] {
        let text = read(&Path::new(ROOT).join(document));
        let mut named = 0;
        for (cell, row) in column(&text, "test") {
            for name in quoted(cell).filter(|name| !name.contains(['/', '.'])) {
                named += 1;
                if !tests.contains(name) {
                    missing.push(format!("{document}: no test {name}: {row}"));
                }
            }
        }
        assert!(named > 20, "{document} names {named} tests");
    }
    // Elsewhere by what a name looks like.
    let documents = fs::read_dir(Path::new(ROOT).join("docs")).expect("the documents");
    let documents = documents.map(|entry| entry.expect("an entry").path());
    for path in documents.chain([Path::new(ROOT).join("README.md")]) {
        for name in quoted(&read(&path)).filter(|word| is_test_name(word)) {
            if !tests.contains(name) {
                missing.push(format!("{}: no test {name}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The numbers of the rows of a table that begin with one, `D` apart
fn numbers(rows: &[(&str, &str)]) -> Vec<u32> {
    let first = |cell: &str| cell.trim().split(' ').next().map(str::to_owned);
    rows.iter()
        .filter_map(|(cell, _)| first(cell)?.trim_start_matches('D').parse().ok())
        .collect()
}

#[test]
fn each_decision_and_each_row_of_the_reference_has_a_test() {
    let text = read(&Path::new(ROOT).join("docs/conformance.md"));
    let design = read(&Path::new(ROOT).join("docs/design.md"));
    for (here, there, count) in [("decision", "id", 27), ("row", "row", 35)] {
        let all: Vec<u32> = (1..=count).collect();
        assert_eq!(numbers(&column(&text, here)), all, "docs/conformance.md");
        assert_eq!(numbers(&column(&design, there)), all, "docs/design.md");
    }
    for (cell, row) in column(&text, "test") {
        let line = cell.starts_with("---");
        assert!(line || quoted(cell).next().is_some(), "no test: {row}");
    }
}

#[test]
fn each_file_that_the_documents_name_exists_and_has_what_they_say() {
    let mut missing = Vec::new();
    for (document, name) in [
        ("docs/options.md", "acts in"),
        ("docs/rfc.md", "code"),
        ("docs/design.md", "where"),
    ] {
        let text = read(&Path::new(ROOT).join(document));
        let mut named = 0;
        for (cell, row) in column(&text, name) {
            let mut file = None;
            let mut pieces = cell.split('`');
            while let (Some(between), Some(word)) = (pieces.next(), pieces.next()) {
                // A file, and behind it what is in it; after other words comes something else.
                if !matches!(between, " " | ", ") {
                    file = None;
                }
                if word.contains('/') || word.ends_with(".rs") {
                    let below = if word.starts_with("tests/") {
                        ""
                    } else {
                        "src"
                    };
                    let path = Path::new(ROOT).join(below).join(word);
                    if !path.exists() {
                        missing.push(format!("{document}: no {word}: {row}"));
                    }
                    file = path.is_file().then(|| read(&path));
                    named += 1;
                } else if let Some(file) = &file {
                    let word = word.rsplit("::").next().unwrap_or(word);
                    if !file.contains(word) {
                        missing.push(format!("{document}: no {word}: {row}"));
                    }
                }
            }
        }
        assert!(named > 10, "{document} names {named} files");
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The first name in each row of a table with this column
fn names_in<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let rows = column(text, name).into_iter();
    rows.filter_map(|(cell, _)| quoted(cell).next()).collect()
}

#[test]
fn each_option_is_told_for_those_who_come_from_asterisk() {
    let options = read(&Path::new(ROOT).join("docs/options.md"));
    let (options, _) = options.split_once("## Transports").expect("what follows");
    let options = names_in(options, "option");
    assert_eq!(options.len(), 22);
    let told = read(&Path::new(ROOT).join("docs/migrating-from-asterisk.md"));
    assert_eq!(names_in(&told, "option"), options);
}

#[test]
fn each_feature_is_in_the_readme_and_none_that_is_not_there() {
    let manifest = read(&Path::new(ROOT).join("Cargo.toml"));
    let (_, features) = manifest.split_once("[features]").expect("features");
    let (features, _) = features.split_once("\n[").expect("what follows them");
    let lines = features.lines().filter(|line| !line.starts_with('#'));
    let names = lines.filter_map(|line| line.split_once(" = "));
    let there: BTreeSet<_> = names
        .map(|(name, _)| name.trim_matches('"'))
        .filter(|name| *name != "default")
        .collect();
    let readme = read(&Path::new(ROOT).join("README.md"));
    let told: BTreeSet<_> = column(&readme, "feature")
        .into_iter()
        .flat_map(|(cell, _)| quoted(cell))
        .collect();
    assert_eq!(there, told);
}
